//! `pando run`.

mod from; // from a checkpoint instead of an image
pub(super) mod net; // what its network reaches
mod publish; // ports of the host that are its ports

use super::checkpoint::bucket;
use super::children::MAX_COUNT;
use crate::client::Client;
use crate::context::Context;
use crate::failure::Failure;
use crate::{complete, out, parse, upload};
use indicatif::ProgressBar;
use pando_wire::api::{RunRequest, Vm};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Boot a VM from an image, or run some from a checkpoint.
///
/// Prints the VM's name once its agent answers.
#[derive(clap::Args)]
#[command(after_help = "\
A folder is packed as it is: owners, modes, links and devices, but no sockets, no extended attributes, and \
nothing of other file systems mounted in it. An image that was imported before is not stored twice.

Examples:
  pando run --name web --cpus 2 --memory 512M ./rootfs -- /srv/counter
  pando run -p 8080:80 ./rootfs -- httpd -f      # at http://127.0.0.1:8080
  pando run rootfs.tar.zst -e MODE=test -w /srv -- make check
  pando run 4f0c2a                  # an image that was imported before
  pando run --from warm --count 3 --prefix review -e BRANCH=fix-login
  pando run --from warm --bucket s3://team/pando        # it stays there")]
#[command(mut_arg("endpoint", |arg| arg.requires("bucket")), mut_arg("region", |arg| arg.requires("bucket")))]
pub(crate) struct Args {
    /// A folder, a tar archive (plain, gzip or zstd), a disk image with ext4, or the beginning of the digest of an
    /// imported image.
    #[arg(value_parser = parse::name(), required_unless_present = "from")]
    image: Option<String>,
    /// The VM's name; one is made up when absent.
    #[arg(short, long, value_parser = parse::name(), conflicts_with_all = ["prefix", "count"])]
    name: Option<String>,
    /// Virtual CPUs, 1 to 32.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=32))]
    cpus: u8,
    /// RAM, 128M to 64G.
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = parse::memory)]
    memory: u64,
    /// Size of the root disk; as large as the image's when absent.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    disk: Option<u64>,
    /// A variable of the command and of every exec; NAME alone takes its value from here.
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// A file of variables, one NAME=VALUE per line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory of the command.
    #[arg(short = 'w', long = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// User of the command: a name that the image knows, UID, or UID:GID.
    #[arg(short, long)]
    user: Option<String>,
    /// A kernel on the daemon's computer, bzImage or ELF; Debian's cloud kernel when absent.
    #[arg(long, value_name = "PATH")]
    kernel: Option<PathBuf>,
    /// How long it may be idle until it hibernates by itself, or off; as pando config says when absent.
    #[arg(long, value_name = "TIME", value_parser = parse::idle_timeout)]
    idle_timeout: Option<u64>,
    #[command(flatten)]
    network: net::Options,
    #[command(flatten)]
    ports: publish::Options,
    /// A checkpoint to run VMs from, instead of an image: all that is not their own is as it was then.
    #[arg(
        long,
        value_name = "CHECKPOINT",
        value_parser = parse::name(),
        add = complete::checkpoint(),
        conflicts_with_all = ["image", "cpus", "memory", "disk", "cwd", "user", "kernel", "idle_timeout", "net", "allow", "deny", "rate", "command"]
    )]
    from: Option<String>,
    /// How many VMs to run from the checkpoint.
    #[arg(long, default_value_t = 1, requires = "from", conflicts_with = "image", value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,
    /// Name the VMs from the checkpoint PREFIX.1, PREFIX.2 and so on; the next free numbers behind the checkpoint's name
    /// when absent.
    #[arg(long, requires = "from", conflicts_with = "image", value_parser = parse::name())]
    prefix: Option<String>,
    /// A bucket that the checkpoint is in and stays in, as s3://bucket/prefix.
    ///
    /// Memory comes from there as the VMs touch it, and then the rest. Keys come from the environment, as for checkpoint
    /// push, and are kept until all of it has come.
    #[arg(long, value_name = "BUCKET", requires = "from", conflicts_with = "image")]
    bucket: Option<String>,
    /// How much of what was fetched from buckets is kept on disk for other VMs, 256M or more; 4G when absent.
    #[arg(long, value_name = "SIZE", requires = "bucket", value_parser = parse::size)]
    bucket_cache: Option<u64>,
    #[command(flatten)]
    server: bucket::Options,
    /// The command to run in the VM, and its arguments; none when absent.
    #[arg(last = true)]
    command: Vec<String>,
}

pub(super) async fn run(args: Args, context: &Context) -> Result<ExitCode, Failure> {
    if let Some(checkpoint) = args.from.clone() {
        return from::run(&checkpoint, args, context).await;
    }
    let image = args.image.clone().unwrap_or_default(); // Clap has seen to it.
    let mut request = request(args)?;
    let wanted = request.publish.clone();
    Client::open_without_starting()?.look_at_kvm()?;
    let client = Client::open().await?;
    request.image = upload::digest(&client, &image).await?;

    let spinner = ProgressBar::new_spinner().with_message("booting");
    spinner.enable_steady_tick(Duration::from_millis(100));
    let answer = client.post_json("/vms", &request).await;
    spinner.finish_and_clear();

    let body = answer?;
    let vm: Vm = body.read()?;
    if let Some(lack) = &vm.no_network {
        out::note(&net::without(lack));
    }
    if context.json() {
        out::json(&body)?;
    } else {
        out::print(&format!("{}\n", vm.name))?;
        publish::chosen(&wanted, &vm.published).iter().for_each(|line| out::note(line));
    }
    Ok(ExitCode::SUCCESS)
}

/// What was typed, as what is meant; the image's digest is still missing.
fn request(args: Args) -> Result<RunRequest, Failure> {
    let kernel = args.kernel.map(std::path::absolute).transpose()?;
    let kernel = kernel.map(PathBuf::into_os_string).map(std::ffi::OsString::into_string).transpose();
    Ok(RunRequest {
        name: args.name,
        image: String::new(),
        cpus: args.cpus,
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        command: args.command,
        env: parse::environment(&args.env_file, args.env)?,
        cwd: args.cwd,
        user: args.user,
        idle_timeout_ms: args.idle_timeout,
        network: args.network.into(),
        publish: args.ports.publish,
        kernel: kernel.map_err(|path| Failure::new(format!("the kernel's path {path:?} is not UTF-8")))?,
    })
}
