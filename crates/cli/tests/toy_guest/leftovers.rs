//! Forks and deletions leave nothing behind.

use crate::LIMIT;
use crate::instant::{boot, wait_for_laps};
use pando_bench::{Child, Monitor, Witness};
use pando_wire::control::Request;
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, waitpid};
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

const WITNESS: Witness = Witness { vcpus: 1, pages: 16, records: 1 };
const FORKS: usize = 250;
const CHILDREN: usize = 2;
/// What a monitor's own memory may grow by: half a KiB a child. The disk's map and the daemon's connections are in it.
const GROWTH_LIMIT_KIB: u64 = 256;

/// What there is of a monitor.
#[derive(Debug, PartialEq)]
struct Held {
    descriptors: usize,
    threads: usize,
    mappings: usize,
    children: usize,
    mounts: usize,
    files: Vec<String>,
}

fn held(monitor: &Monitor, pid: u32) -> Held {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let lines = |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let files = fs::read_dir(monitor.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = files.collect();
    files.sort();
    let dir = monitor.dir().to_string_lossy().into_owned();
    Held {
        descriptors: count("fd"),
        threads: count("task"),
        mappings: lines("maps").lines().count(),
        children: lines(&format!("task/{pid}/children")).split_whitespace().count(),
        mounts: lines("mountinfo").lines().filter(|line| line.contains(&dir)).count(),
        files,
    }
}

/// Memory of the monitor that is not the guest's: the C library's heap.
fn heap_kib(pid: u32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut lines = maps.lines().skip_while(|line| !line.ends_with("[heap]"));
    let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap_or("0 kB");
    rss.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Removes a child, each time in another way, and waits until its process is gone.
fn remove(child: Child, way: usize) {
    let pid = child.monitor.pid().unwrap();
    let process = Pid::from_raw(pid as i32).unwrap();
    match way % 2 {
        0 => drop(child.monitor.ask(&Request::Kill).unwrap()),
        _ => kill_process(process, Signal::KILL).unwrap(),
    }
    let deadline = Instant::now() + LIMIT;
    while Path::new(&format!("/proc/{pid}")).exists() {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        // Ours if whoever forked it has ended; only ever this one, as other tests have children of their own.
        let _ = waitpid(Some(process), WaitOptions::NOHANG);
        thread::sleep(Duration::from_micros(100));
    }
}

#[test]
fn five_hundred_children_leave_no_process_file_mount_descriptor_or_memory() {
    let Some(parent) = boot(WITNESS) else { return };
    set_child_subreaper(Some(getpid())).unwrap();
    let pid = parent.pid().unwrap();
    let round = |number: usize| {
        let (_, children) = parent.fork(CHILDREN as u32).unwrap();
        children.into_iter().enumerate().for_each(|(index, child)| remove(child, number + index));
    };
    // It hears of a connection that was closed, and the kernel of a child that ended, a little later.
    let settled = |is_settled: &dyn Fn(&Held) -> bool| {
        let deadline = Instant::now() + LIMIT;
        while !is_settled(&held(&parent, pid)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
        }
        (held(&parent, pid), heap_kib(pid))
    };
    let busy = || wait_for_laps(&parent, WITNESS, 1, LIMIT);
    (0..10).for_each(round); // What is made once is made now.
    thread::sleep(Duration::from_millis(200));
    let (before, heap_before) = settled(&|held| held.children == 0);
    for number in 0..FORKS {
        round(number);
        // Nothing is asked of the children, so what would the parent be in their way for?
        match number % 50 {
            0 => drop(parent.ask(&Request::Pause).unwrap()),
            49 => parent.ask(&Request::Resume).map(|_| busy()).unwrap(),
            _ => (),
        }
    }
    let (after, heap_after) = settled(&|held| *held == before);
    assert_eq!(after, before, "after {} children more", FORKS * CHILDREN);
    let grown = heap_after.saturating_sub(heap_before);
    assert!(grown <= GROWTH_LIMIT_KIB, "its heap grew from {heap_before} to {heap_after} KiB");
    wait_for_laps(&parent, WITNESS, 4, LIMIT);
}
