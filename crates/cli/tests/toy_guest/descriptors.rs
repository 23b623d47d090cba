//! What a child of a fork has open: nothing of its parent's.

use crate::instant::{boot, wait_for_laps};
use crate::{LIMIT, needs_kvm};
use pando_bench::{Monitor, Witness};
use pando_sys::is_one_file;
use rustix::io::Errno;
use rustix::process::Pid;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const WITNESS: Witness = Witness { vcpus: 2, pages: 8, records: 4 };

/// An open descriptor.
#[derive(Debug)]
struct Open {
    fd: i32,
    what: PathBuf,
    /// The flags of `open(2)`.
    flags: u32,
}

fn pid(monitor: &Monitor) -> Pid {
    Pid::from_raw(monitor.pid().unwrap() as i32).unwrap()
}

fn descriptors(pid: Pid) -> Vec<Open> {
    let of = format!("/proc/{}", pid.as_raw_nonzero());
    let mut all: Vec<_> = fs::read_dir(format!("{of}/fd"))
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let fd = entry.file_name().to_str().unwrap().parse().unwrap();
            // The connection of a request is there and gone.
            let info = fs::read_to_string(format!("{of}/fdinfo/{fd}")).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
            Some(Open { fd, what: fs::read_link(entry.path()).ok()?, flags: u32::from_str_radix(flags, 8).unwrap() })
        })
        .collect();
    all.sort_by_key(|open| open.fd);
    all
}

/// Which descriptors of `one` are the same open file as one of `other`.
fn shared(one: Pid, other: Pid) -> Vec<(i32, PathBuf)> {
    let others = descriptors(other);
    let is_one = |own: &Open, open: &Open| {
        let is_one = is_one_file((one, own.fd), (other, open.fd));
        let error = is_one.as_ref().err().and_then(|error| error.source()?.downcast_ref::<io::Error>()?.raw_os_error());
        // As above; anything else is no answer.
        error != Some(Errno::BADF.raw_os_error()) && is_one.unwrap()
    };
    let is_shared = |own: &Open| others.iter().any(|open| is_one(own, open));
    descriptors(one).into_iter().filter(is_shared).map(|own| (own.fd, own.what)).collect()
}

/// How many bytes of vCPUs' run pages `pid` has mapped.
fn run_pages(pid: Pid) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{}/maps", pid.as_raw_nonzero())).unwrap();
    let len = |line: &str| {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        u64::from_str_radix(end, 16).unwrap() - u64::from_str_radix(start, 16).unwrap()
    };
    maps.lines().filter(|line| line.contains("anon_inode:kvm")).map(len).sum()
}

#[test]
fn a_child_has_none_of_its_relatives_descriptors() {
    let Some(parent) = boot(WITNESS) else { return };
    let (_, mut children) = parent.fork(2).unwrap();
    let (sibling, child) = (children.pop().unwrap().monitor, children.pop().unwrap().monitor);
    let (_, mut grandchildren) = child.fork(1).unwrap();
    let grandchild = grandchildren.pop().unwrap().monitor;
    wait_for_laps(&grandchild, WITNESS, 6, LIMIT);

    // Standard input and output: what the first monitor got as standard output. See `fork.rs` of pando-vmm.
    let null = Path::new("/dev/null");
    let stated = [(0, null.to_path_buf()), (1, null.to_path_buf())];
    for (one, other) in
        [(&parent, &child), (&child, &sibling), (&child, &grandchild), (&parent, &grandchild), (&sibling, &grandchild)]
    {
        assert_eq!(shared(pid(one), pid(other)), stated, "one open file in two monitors");
    }
}

#[test]
fn a_child_can_write_to_its_own_files_only() {
    let Some(parent) = boot(WITNESS) else { return };
    let (_, mut children) = parent.fork(1).unwrap();
    let child = children.pop().unwrap().monitor;
    wait_for_laps(&child, WITNESS, 1, LIMIT);

    let mut names = Vec::new();
    for open in descriptors(pid(&child)).into_iter().filter(|open| open.fd > 2) {
        let can_write = open.flags & 0b11 != 0;
        let is_own = open.what.starts_with(child.dir());
        assert!(is_own || !can_write || !open.what.is_absolute(), "{open:?}");
        if open.what.starts_with(parent.dir()) || is_own {
            names.push((is_own, open.what.file_name().unwrap().to_str().unwrap().to_owned()));
        }
    }
    names.sort();
    let wanted = [(false, "base"), (false, "data"), (true, "console"), (true, "data"), (true, "journal")];
    assert_eq!(names, wanted.map(|(is_own, name)| (is_own, name.to_owned())));
}

#[test]
fn a_child_holds_no_virtual_cpu_of_its_ancestors() {
    // A vCPU's run page that stays mapped keeps the vCPU open, and with it its machine in the kernel.
    let Some(first) = boot(WITNESS) else { return };
    let wanted = run_pages(pid(&first));
    assert!(wanted >= 2 * 4096 || !needs_kvm());
    let mut line = vec![first];
    for _ in 0..3 {
        let (_, mut children) = line.last().unwrap().fork(1).unwrap();
        line.push(children.pop().unwrap().monitor);
        assert_eq!(run_pages(pid(line.last().unwrap())), wanted, "generation {}", line.len() - 1);
    }
}
