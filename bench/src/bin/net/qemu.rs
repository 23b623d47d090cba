//! QEMU with a guest that sends: the same kernel and drivers, the same memory, one vCPU, and a tap from the same hands.

use pando_daemon::network::{DEFAULT_RANGE, Networks, Policy};
use pando_guest::{initramfs, kernel::Kernel};
use pando_wire::network::{MAC, Network};
use rustix::io::{FdFlags, fcntl_setfd};
use std::error::Error;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;
use tempfile::TempDir;

/// How long an emulator that cannot have what it was asked for takes to say so.
const BEGIN: Duration = Duration::from_secs(5);

/// Who moves packets between the card and the tap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vhost {
    /// QEMU itself.
    Off,
    /// The host's kernel.
    On,
}

/// The emulator, which ends with this.
pub(crate) struct Qemu {
    process: Child,
    _networks: Networks,
    _folder: TempDir,
}

impl Qemu {
    /// Boots a guest that runs `command` over and over.
    pub(crate) fn start(memory_bytes: u64, command: &str, vhost: Vhost) -> Result<Self, Box<dyn Error>> {
        let folder = TempDir::with_prefix("pb.qemu.")?;
        let kernel = Kernel::find(&cache()?, &mut |_| ())?;
        let root = folder.path().join("initramfs");
        fs::write(&root, [initramfs::base(&kernel)?, archive(&folder, command)?].concat())?;

        let networks = Networks::new(&format!("a benchmark's, {vhost:?}"), DEFAULT_RANGE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let queues = runtime.block_on(networks.take(1, &Policy::default()))?.queues;
        let tap = &queues[0];
        fcntl_setfd(tap, FdFlags::empty())?; // The emulator inherits it.
        let mac: Vec<_> = MAC.iter().map(|byte| format!("{byte:02x}")).collect();
        let on_off = if vhost == Vhost::On { "on" } else { "off" };
        let log = folder.path().join("log");
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-enable-kvm", "-cpu", "host", "-M", "q35", "-smp", "1", "-nodefaults", "-display", "none"])
            .args(["-m", &(memory_bytes >> 20).to_string(), "-no-reboot", "-serial"])
            .arg(format!("file:{}", folder.path().join("console").display()))
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(&root)
            .args(["-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on 8250.nr_uarts=1 rdinit=/bench"])
            .args(["-netdev", &format!("tap,id=net,fd={},vhost={on_off}", tap.as_raw_fd())])
            .args(["-device", &format!("virtio-net-pci,netdev=net,romfile=,mac={}", mac.join(":"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()?;
        drop::<Vec<OwnedFd>>(queues);
        sleep(BEGIN);
        match process.try_wait()? {
            None => Ok(Self { process, _networks: networks, _folder: folder }),
            Some(status) => Err(format!("QEMU: {status}, {}", fs::read_to_string(log)?.trim()).into()),
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where the kernel of guests is, as the daemon has it.
fn cache() -> Result<PathBuf, Box<dyn Error>> {
    Ok(std::env::var_os("PANDO_CACHE_DIR").ok_or("PANDO_CACHE_DIR is not set")?.into())
}

/// A second archive of the initramfs: busybox, and a first program that loads the drivers of the first.
fn archive(folder: &TempDir, command: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let root = folder.path().join("root");
    for name in ["bin", "proc", "sys"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let Network { address, prefix_len, gateway, .. } = Network::GUEST;
    let script = format!(
        "#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
while read -r module; do $b insmod /pando/lib/$module; done </pando/modules
$b ip addr add {address}/{prefix_len} dev eth0
$b ip link set eth0 up
$b ip route add default via {gateway}
while :; do {command}; $b sleep 1; done
"
    );
    fs::write(root.join("bench"), script)?;
    let made = Command::new("/bin/busybox")
        .args(["sh", "-c", "chmod 755 bench && find . | busybox cpio -o -H newc"])
        .current_dir(&root)
        .stderr(Stdio::null())
        .output()?;
    match made.status.success() {
        true => Ok(made.stdout),
        false => Err("busybox cannot make an archive".into()),
    }
}
