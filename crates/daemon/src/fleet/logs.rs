//! What a VM wrote to its console.

use super::Fleet;
use super::error::{FleetError, cannot};
use crate::paths::Paths;
use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream::try_unfold;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;

/// How often a console is looked at that is followed.
const POLL: Duration = Duration::from_millis(100);
/// How often a console is looked for that is not there yet.
const OPENINGS: usize = 10;
/// How much is read at a time.
const CHUNK: usize = 64 << 10;
/// How much of the end of a console is looked at for its last lines.
const TAIL_BYTES: u64 = 16 << 10;
/// How many last lines an error shows.
const TAIL_LINES: usize = 20;

impl Fleet {
    /// The console of a VM from its beginning; with `follow`, until the VM has ended.
    pub(crate) async fn logs(
        &self,
        name: &str,
        follow: bool,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, FleetError> {
        let record = self.look_up(name).await?;
        let path = self.0.paths.console(&record.id);
        let file = open(&path).await.map_err(cannot(format!("open {}", path.display())))?;
        let (fleet, id) = (self.clone(), record.id);
        Ok(try_unfold(file, move |mut file| {
            let (fleet, id) = (fleet.clone(), id.clone());
            async move {
                let mut chunk = vec![0; CHUNK];
                loop {
                    // Asked before reading: what is written before the end is then read after it.
                    let goes_on = follow && !*fleet.0.shutdown.borrow() && fleet.0.supervisor.live(&id).is_some();
                    let got = file.read(&mut chunk).await?;
                    if got > 0 {
                        chunk.truncate(got);
                        return Ok(Some((Bytes::from(chunk), file)));
                    }
                    if !goes_on {
                        return Ok(None);
                    }
                    sleep(POLL).await;
                }
            }
        }))
    }
}

/// Opens the console of a VM. That of one that is about to be made is waited for.
async fn open(path: &Path) -> io::Result<tokio::fs::File> {
    for _ in 0..OPENINGS {
        match tokio::fs::File::open(path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => sleep(POLL).await,
            opened => return opened,
        }
    }
    tokio::fs::File::open("/dev/null").await // It has written nothing.
}

/// How long a VM's console is. Blocks.
pub(super) fn len(paths: &Paths, id: &str) -> u64 {
    fs::metadata(paths.console(id)).map_or(0, |metadata| metadata.len())
}

/// The last lines that a VM wrote to its console behind `start`, and that its monitor complained of. Blocks.
pub(super) fn last_lines(paths: &Paths, id: &str, start: u64) -> Vec<String> {
    let mut lines = tail(&paths.console(id), start).unwrap_or_default();
    let surplus = lines.len().saturating_sub(TAIL_LINES);
    lines.drain(..surplus);
    lines
}

fn tail(path: &Path, start: u64) -> io::Result<Vec<String>> {
    let mut file = fs::File::open(path)?;
    let end = file.metadata()?.len();
    file.seek(SeekFrom::Start(start.max(end.saturating_sub(TAIL_BYTES))))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.lines().map(str::trim_end).filter(|line| !line.is_empty()).map(printable).collect())
}

/// A guest must not be able to move the cursor of whoever reads about it.
fn printable(line: &str) -> String {
    line.chars().map(|char| if char.is_control() { ' ' } else { char }).collect()
}
