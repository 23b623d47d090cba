//! `pando checkpoint export`.

use crate::client::{Client, segment};
use crate::context::Context;
use crate::failure::{Failure, USAGE};
use crate::{complete, out, parse, progress};
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tempfile::NamedTempFile;

/// Write a stored checkpoint into a file, for another computer.
///
/// The file has all that the checkpoint needs but its image, and appears when all of it is there.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  pando checkpoint export warm warm.pando
  pando checkpoint export warm - | ssh there pando checkpoint import -")]
pub(super) struct Args {
    /// Name or id of a checkpoint.
    #[arg(value_parser = parse::name(), add = complete::checkpoint())]
    checkpoint: String,
    /// The file; - is standard output.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,
}

pub(super) async fn run(args: Args, _: &Context) -> Result<ExitCode, Failure> {
    let path = format!("/checkpoints/{}/export", segment(&args.checkpoint));
    if args.file == Path::new("-") {
        if io::stdout().is_terminal() {
            return Err(Failure::new("a terminal is no place for a checkpoint: name a file").with_code(USAGE));
        }
        receive(&path, out::bytes).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let failed = |error: io::Error| Failure::from(error).under(format!("cannot write {}", args.file.display()));
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // It has its name when it is whole, and is removed when it does not become that.
    let mut file = NamedTempFile::new_in(folder).map_err(failed)?;
    receive(&path, |bytes| file.write_all(bytes).map_err(failed)).await?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(&args.file).map_err(|error| failed(error.error))?;
    Ok(ExitCode::SUCCESS)
}

/// Has the daemon's answer, as it comes, written by `write`.
async fn receive(path: &str, mut write: impl FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut stream = Client::open().await?.stream(path).await?;
    let bar = progress::bytes("exporting", None);
    while let Some(bytes) = stream.next().await? {
        write(&bytes)?;
        bar.inc(bytes.len() as u64);
    }
    bar.finish_and_clear();
    Ok(())
}
