//! What the doctor looks at, one function each.

use super::{Kvm, Row};
use crate::tools;
use pando_guest::kernel::{CLOUD, GENERIC, Kernel};
use rustix::fs::{Access, access, ioctl_ficlone, statvfs};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Less memory than this is not worth starting VMs in.
const MEMORY_BYTES: u64 = 1 << 30;
/// Less free disk than this is soon full.
const DISK_BYTES: u64 = 2 << 30;

pub(super) fn kvm(kvm: &Kvm) -> Row {
    let found = match kvm {
        Kvm::Hardware { ns_per_instruction } => format!("hardware, {ns_per_instruction} ns an instruction"),
        Kvm::Software { ns_per_instruction } => format!("software, {ns_per_instruction} ns an instruction"),
        Kvm::NoPermission => "no permission".to_owned(),
        Kvm::Broken { why } => why.clone(),
        Kvm::None => "no /dev/kvm".to_owned(),
    };
    match kvm.advice() {
        None => Row::good("KVM", found),
        Some(advice) => Row::bad("KVM", found, advice),
    }
}

/// Whether `pando machine` could start: the programs that it runs, and its kernels or a way to get them.
pub(super) fn emulated_host(cache_dir: &Path) -> Row {
    const WHAT: &str = "emulated host";
    let is_here = Kernel::is_cached(CLOUD, cache_dir)
        && (Kernel::is_cached(GENERIC, cache_dir) || std::env::var_os("PANDO_MACHINE_KERNEL").is_some());
    let needed = [tools::QEMU, tools::BUSYBOX, tools::DEPMOD, tools::MKFS];
    let to_download = [tools::APT_GET, tools::DPKG_DEB].into_iter().filter(|_| !is_here);
    let is_missing = |tool: &tools::Tool| match *tool {
        tools::BUSYBOX => tools::busybox().is_err(),
        tool => tool.find().is_err(),
    };
    let missing: Vec<_> = needed.into_iter().chain(to_download).filter(is_missing).collect();
    if missing.is_empty() {
        return Row::good(WHAT, "its programs are here");
    }
    let programs: Vec<_> = missing.iter().map(|tool| tool.program).collect();
    let packages: Vec<_> = missing.iter().map(|tool| tool.package).collect();
    Row::bad(
        WHAT,
        format!("no {}", programs.join(", no ")),
        format!("only for computers without hardware KVM: apt-get install {}", packages.join(" ")),
    )
}

pub(super) fn huge_pages() -> Row {
    huge_pages_of(
        &read("/sys/kernel/mm/transparent_hugepage/enabled"),
        &read("/sys/kernel/mm/transparent_hugepage/khugepaged/defrag"),
    )
}

fn huge_pages_of(enabled: &str, collapse: &str) -> Row {
    const WHAT: &str = "huge pages";
    match chosen(enabled) {
        Some(mode @ ("always" | "madvise")) => {
            let later = if collapse.trim() == "1" { "" } else { ", none put together later" };
            Row::good(WHAT, format!("{mode}{later}"))
        }
        mode => Row::bad(
            WHAT,
            mode.unwrap_or("none"),
            "forks pause their VM 30 to 50 times longer without: echo madvise > \
             /sys/kernel/mm/transparent_hugepage/enabled",
        ),
    }
}

/// The word in brackets.
fn chosen(modes: &str) -> Option<&str> {
    Some(modes.split_once('[')?.1.split_once(']')?.0)
}

pub(super) fn userfaultfd() -> Row {
    const WHAT: &str = "userfaultfd";
    if File::options().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        return Row::good(WHAT, "/dev/userfaultfd");
    }
    let setting = read("/proc/sys/vm/unprivileged_userfaultfd");
    if setting.trim() == "1" || (!setting.is_empty() && rustix::process::geteuid().is_root()) {
        return Row::good(WHAT, "system call");
    }
    let found = if setting.is_empty() { "none" } else { "no permission" };
    Row::bad(WHAT, found, "VMs cannot wake before all their memory is loaded: let this user open /dev/userfaultfd")
}

pub(super) fn reflink(state_dir: &Path) -> Row {
    const WHAT: &str = "reflink";
    let folder = existing(state_dir);
    match try_reflink(folder) {
        Ok(()) => Row::good(WHAT, format!("in {}", folder.display())),
        Err(error) => {
            let known = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::XDEV, Errno::NOSYS];
            let none = known.iter().any(|known| error.raw_os_error() == Some(known.raw_os_error()));
            let found =
                if none { format!("none in {}", folder.display()) } else { format!("{}: {error}", folder.display()) };
            Row::bad(WHAT, found, "copies of whole files take time and space there; XFS and btrfs share them")
        }
    }
}

fn try_reflink(folder: &Path) -> io::Result<()> {
    let mut from = tempfile::tempfile_in(folder)?;
    from.write_all(&[1; 4096])?;
    let to = tempfile::tempfile_in(folder)?;
    Ok(ioctl_ficlone(&to, &from)?)
}

pub(super) fn cgroups() -> Row {
    cgroups_in(Path::new("/sys/fs/cgroup"))
}

fn cgroups_in(root: &Path) -> Row {
    const WHAT: &str = "cgroups";
    let advice = "VMs run without limits of their own; boot with systemd.unified_cgroup_hierarchy=1";
    if !root.join("cgroup.controllers").exists() {
        let found = if root.join("unified/cgroup.controllers").exists() {
            "v1, v2 beside it without controllers"
        } else if root.join("memory").exists() {
            "v1"
        } else {
            "none"
        };
        return Row::bad(WHAT, found, advice);
    }
    match access(root, Access::WRITE_OK) {
        Ok(()) => Row::good(WHAT, "v2, writable"),
        Err(_) => {
            Row::bad(WHAT, "v2, not writable", "VMs run without limits of their own unless the daemon runs as root")
        }
    }
}

/// Whether VMs can have networks.
pub(super) fn network() -> Row {
    const WHAT: &str = "network";
    match pando_sys::network_lack() {
        None => Row::good(WHAT, "a namespace for each VM"),
        Some(lack) => Row::bad(WHAT, "none", lack.to_string()),
    }
}

/// Whether others' packet filters let VMs' packets through.
pub(super) fn forwarding() -> Row {
    match tools::NFT.output(["-j", "list", "chains"]) {
        Ok(chains) => forwarding_by(&serde_json::from_slice(&chains).unwrap_or_default()),
        Err(_) => Row::good("forwarding", "not looked at: it needs nft, and root"),
    }
}

/// A packet gets through when no table drops it, so another's that drops all it does not know, as Docker's does, drops VMs'.
fn forwarding_by(chains: &serde_json::Value) -> Row {
    const WHAT: &str = "forwarding";
    let drops = |chain: &&serde_json::Value| chain["hook"] == "forward" && chain["policy"] == "drop";
    let all = chains["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("chain"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    match all.into_iter().find(drops) {
        None => Row::good(WHAT, "not filtered"),
        Some(chain) => Row::bad(
            WHAT,
            format!("dropped by {} {} {}", text(&chain["family"]), text(&chain["table"]), text(&chain["name"])),
            "VMs reach nobody unless that lets them: iptables -I FORWARD -i pando+ -j ACCEPT; iptables -I FORWARD -o pando+ -m \
             conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT (with Docker, DOCKER-USER in place of FORWARD)",
        ),
    }
}

pub(super) fn memory() -> Row {
    let available = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    amount("free memory", available.map(|kib| kib << 10), MEMORY_BYTES, "VMs will soon be refused: free some")
}

pub(super) fn disk(state_dir: &Path) -> Row {
    let available = statvfs(existing(state_dir)).ok().map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    amount(
        "free disk",
        available,
        DISK_BYTES,
        "disks of VMs will soon see I/O errors: free some, or set PANDO_STATE_DIR",
    )
}

fn amount(what: &'static str, bytes: Option<u64>, least: u64, advice: &str) -> Row {
    let Some(bytes) = bytes else {
        return Row::bad(what, "unknown", "mount /proc");
    };
    let found = format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024);
    if bytes >= least { Row::good(what, found) } else { Row::bad(what, found, advice) }
}

/// `path`, or the nearest folder above it that is there.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}

/// A file of the kernel; empty when there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_is_here_needs_no_apt() {
        let cache = tempfile::tempdir().unwrap();
        let wants_apt = || emulated_host(cache.path()).found.contains("apt-get");
        let has_apt = tools::APT_GET.find().is_ok();
        assert_eq!(wants_apt(), !has_apt);
        for package in [CLOUD, GENERIC] {
            fs::create_dir_all(cache.path().join("kernel").join(package)).unwrap();
        }
        assert!(!wants_apt());
    }

    #[test]
    fn huge_pages_are_good_when_they_can_be_asked_for() {
        assert!(huge_pages_of("[always] madvise never\n", "1\n").ok);
        assert_eq!(huge_pages_of("always [madvise] never\n", "0\n").found, "madvise, none put together later");
        assert!(!huge_pages_of("always madvise [never]\n", "1\n").ok);
        assert_eq!(huge_pages_of("", "").found, "none");
    }

    #[test]
    fn only_the_second_version_of_cgroups_at_the_root_counts() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroups_in(root.path()).found, "none");
        fs::create_dir(root.path().join("memory")).unwrap();
        assert_eq!(cgroups_in(root.path()).found, "v1");
        fs::create_dir(root.path().join("unified")).unwrap();
        fs::write(root.path().join("unified/cgroup.controllers"), "").unwrap();
        assert!(!cgroups_in(root.path()).ok);
        fs::write(root.path().join("cgroup.controllers"), "cpu").unwrap();
        assert!(cgroups_in(root.path()).ok);
    }

    #[test]
    fn a_table_that_drops_what_it_does_not_know_is_named() {
        let chain = |policy: &str| {
            serde_json::json!({ "nftables": [{ "metainfo": {} }, { "chain": {
                "family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": policy,
            } }] })
        };
        assert!(forwarding_by(&chain("accept")).ok && forwarding_by(&serde_json::Value::Null).ok);
        assert_eq!(forwarding_by(&chain("drop")).found, "dropped by ip filter FORWARD");
    }

    #[test]
    fn amounts_are_told_in_gib() {
        assert_eq!(amount("x", Some((3 << 30) + (1 << 29)), 1, "").found, "3.5 GiB");
        assert!(!amount("x", Some(1), 2, "no").ok);
        assert!(!amount("x", None, 2, "no").ok);
    }

    #[test]
    fn the_nearest_folder_that_is_there_is_examined() {
        assert_eq!(existing(Path::new("/proc/no/such/folder")), Path::new("/proc"));
    }
}
