//! The control protocol.

use crate::{FLUSHED, Monitor, agent, pages};
use pando_wire::control::{
    Connection, DiskSeal, Ending, ForkTimings, Origin, PAGES_CONNECTIONS, Phase, Request, Response, Serving, Start,
    StartTimings, Status, VERSION, VcpuPlace, WorkingSet,
};
use pando_wire::pages::Serve;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the journal of a disk says that was written to since it was flushed.
const UNFLUSHED: &[u8] = b"journal";
/// For how long one has something else to do.
const BUSY: Duration = Duration::from_secs(5);
/// In what is saved without a disk, ahead of the instant that the disk is of.
const DISK_OF: &str = ", which is of ";

pub(crate) fn serve(monitor: &Arc<Monitor>, connection: Connection) {
    while let Ok(Some((request, descriptors))) = connection.receive() {
        let response = match request {
            Request::Start(start) => begin(monitor, &start, descriptors),
            Request::Fork(fork) => {
                assert_eq!(fork.children as usize, descriptors.len());
                if !monitor.state.lock().unwrap().pages.is_empty() {
                    Response::Refused(vec!["the memory of the VM is still on its way: gather it first".into()])
                } else if monitor.name == "no-fork" {
                    Response::Refused(vec!["the disk is broken".into(), "no space left on device".into()])
                } else {
                    descriptors.into_iter().for_each(|control| spawn_child(monitor, control));
                    Response::Forked(ForkTimings {
                        pause_us: 15,
                        park_us: 1,
                        save_us: 2,
                        seal_us: 3,
                        fork_us: 4,
                        resume_us: 5,
                        expected_pages: monitor.state.lock().unwrap().expected.pages(),
                    })
                }
            }
            Request::Pause => shift(monitor, Phase::Paused),
            Request::Resume => go_on(monitor),
            Request::Kill => {
                connection.send(&Response::Done, &[]).unwrap();
                monitor.end(Ending::Killed);
            }
            Request::Status => {
                let phase = monitor.state.lock().unwrap().phase;
                let version = if monitor.name == "newer" { 99 } else { VERSION };
                Response::Status(Status { version, pid: std::process::id(), phase })
            }
            Request::Touched => {
                let pagemap = descriptors.into_iter().next().unwrap();
                assert!(File::from(pagemap).read_at(&mut [0; 8], 0).is_ok());
                if monitor.name == "child of busy" {
                    std::thread::sleep(BUSY);
                }
                // Three pages, and one more each time that it is asked.
                let mut state = monitor.state.lock().unwrap();
                state.touched += 1;
                Response::Touched(WorkingSet(vec![(7, 2), (12, state.touched)]))
            }
            Request::Expect(pages) => {
                monitor.state.lock().unwrap().expected = pages;
                Response::Done
            }
            Request::Save => save(monitor, true, None, descriptors),
            Request::SaveSince(earlier) => save(monitor, true, Some(earlier), descriptors),
            Request::SaveWithoutDisk => save(monitor, false, None, descriptors),
            Request::Serve(_) if monitor.name == "untaught" => return, // As one that does not know of it.
            Request::Serve(fork) => copy(monitor, fork.children, descriptors),
            Request::Vcpus => Response::Vcpus(vec![VcpuPlace { rip: 0x1000, rflags: 0x202, is_halted: true }]),
            Request::Frames => Response::Frames(None),
            Request::Flush => flush(monitor),
            Request::DiskSeal if monitor.name.contains("untold") => return, // As one that does not know of it.
            Request::DiskSeal => Response::DiskSeal(DiskSeal { life: [5; 16], slots: std::process::id().into() }),
            Request::Gather => {
                // Until the process ends.
                while monitor.name == "far" && !monitor.state.lock().unwrap().pages.is_empty() {
                    std::thread::park();
                }
                monitor.state.lock().unwrap().pages.clear();
                Response::Done
            }
            Request::Watch => {
                let watching = Connection::from_fd(connection.as_fd().try_clone_to_owned().unwrap());
                monitor.state.lock().unwrap().watching.push(watching);
                Response::Done
            }
        };
        if connection.send(&response, &[]).is_err() {
            return;
        }
    }
}

fn begin(monitor: &Arc<Monitor>, start: &Start, descriptors: Vec<OwnedFd>) -> Response {
    assert_eq!(monitor.state.lock().unwrap().phase, Phase::Created);
    let inherited = start.inherited_layers as usize;
    let (began, more, recovers) = match &start.origin {
        Origin::Boot(boot) => ("booted", 2, boot.recover_layers),
        Origin::Fork => ("forked", 0, false),
        Origin::Checkpoint(restore) => {
            assert_eq!(restore.disk_bytes, pages::PAGES * 4096);
            assert_eq!(inherited, 0, "{start:?}");
            (if restore.is_twin { "woken" } else { "slept with its disk as" }, PAGES_CONNECTIONS, false)
        }
        Origin::Asleep(asleep) => {
            (if asleep.is_alone { "slept as" } else { "slept among readers as" }, PAGES_CONNECTIONS, true)
        }
    };
    let wanted = 6 + inherited + more + if recovers { inherited } else { 0 };
    let queues = start.network.map_or(0, |network| usize::from(network.queue_pairs));
    assert_eq!(descriptors.len(), wanted + queues, "{start:?}");
    if monitor.name == "refused" {
        return Response::Refused(vec!["the machine is broken".into(), "no such device".into()]);
    }

    let mut descriptors = descriptors;
    let queues = descriptors.split_off(wanted);
    let mut descriptors = descriptors.into_iter();
    let _kvm = descriptors.next();
    let mut console = File::from(descriptors.next().unwrap());
    let vsock = UnixListener::from(descriptors.next().unwrap());
    let base = File::from(descriptors.next().unwrap());
    assert!(base.metadata().unwrap().len() > 0);
    let inherited: Vec<_> = descriptors.by_ref().take(inherited).map(File::from).collect();
    let (data, journal) = (File::from(descriptors.next().unwrap()), File::from(descriptors.next().unwrap()));
    // Every layer has something in it, so that one that is missing is missed.
    let is_filled = |file: &File| file.metadata().unwrap().len() > 0;
    assert!(inherited.iter().all(is_filled));
    assert_eq!(is_filled(&data), recovers);
    let is_saved = matches!(start.origin, Origin::Checkpoint(_) | Origin::Asleep(_));
    let pages: Vec<_> = descriptors.by_ref().take(if is_saved { more } else { 0 }).map(UnixStream::from).collect();
    if recovers {
        let journals = descriptors.skip(if is_saved { 0 } else { more });
        assert_eq!(journals.map(File::from).filter(is_filled).count(), inherited.len());
    }
    let is_asleep = matches!(&start.origin, Origin::Asleep(_))
        || matches!(&start.origin, Origin::Checkpoint(restore) if !restore.is_twin);
    let mut machine = String::new(); // A line.
    if let Some(server) = pages.first() {
        BufReader::new(server).read_line(&mut machine).unwrap();
        if machine.is_empty() {
            return Response::Refused(vec!["the page server is gone".into()]);
        }
    }

    if matches!(start.origin, Origin::Asleep(_)) {
        let (said, instant) = machine.trim_end().split_once(DISK_OF).unwrap();
        let instant = instant.split(',').next().unwrap(); // What it is stored since may stand behind that.
        let mut journalled = String::new();
        (&journal).read_to_string(&mut journalled).unwrap();
        assert_eq!(journalled, journal_of(instant), "memory and disk are of one instant");
        machine = format!("{said}\n");
    } else {
        data.write_all_at(b"blocks", 0).unwrap();
        journal.write_all_at(UNFLUSHED, 0).unwrap();
    }

    {
        let mut state = monitor.state.lock().unwrap();
        state.phase = if is_asleep { Phase::Paused } else { Phase::Running };
        state.disk = Some(data); // Its lock is held as long as it is open.
        state.journal = Some(journal);
        state.queues = queues;
        // All of its memory has arrived, but for those of which that is not to be before they are asked to gather it.
        if ["arriving", "far", "lately"].contains(&monitor.name.as_str()) {
            state.pages = pages;
        }
    }
    if monitor.name.starts_with("no-boot") {
        writeln!(console, "Kernel panic - not syncing: no root").unwrap();
        let monitor = Arc::clone(monitor);
        std::thread::spawn(move || monitor.end(Ending::Crashed("triple fault".into())));
        return Response::Started(StartTimings::default());
    }
    writeln!(console, "{began} {}", monitor.name).unwrap();
    write!(console, "{machine}").unwrap();
    if is_asleep && monitor.name == "drowsy" {
        std::thread::sleep(std::time::Duration::from_secs(1)); // It stands still, and has not said so.
    }
    let agents = Arc::clone(monitor);
    std::thread::spawn(move || {
        if agents.name == "child of silent" {
            std::process::exit(1); // Once it is said that it started, or just before.
        }
        match agents.name.as_str() {
            "slow" => std::thread::sleep(Duration::from_millis(500)),
            "child of mute" => std::thread::sleep(Duration::MAX),
            _ => (),
        }
        agent::serve(&agents, &vsock)
    });
    Response::Started(StartTimings { total_us: 7, ..StartTimings::default() })
}

/// What a seed says of itself, after which the stream ends.
fn save(monitor: &Monitor, with_disk: bool, earlier: Option<DiskSeal>, descriptors: Vec<OwnedFd>) -> Response {
    assert_eq!(monitor.state.lock().unwrap().phase, Phase::Created);
    let mut files = descriptors.into_iter();
    let mut stream = UnixStream::from(files.next().unwrap());
    // Of what the kernel shows, nothing has a length.
    let (layers, shown): (Vec<_>, Vec<_>) = files.map(File::from).partition(|file| file.metadata().unwrap().len() > 0);
    assert_eq!(!layers.is_empty(), with_disk);
    if monitor.name.contains("old-fashioned") && !shown.is_empty() {
        return Response::Refused(vec!["too many descriptors".into()]);
    }
    match with_disk {
        true => write!(stream, "{} of {} layers", monitor.name, layers.len()).unwrap(),
        false => write!(stream, "{} without its disk{DISK_OF}{}", monitor.name, monitor.disk_of).unwrap(),
    }
    if let Some(DiskSeal { life: [5, ..], slots }) = earlier {
        write!(stream, ", disk as {slots}'s").unwrap();
    }
    if let [earlier, own, vmstat] = &shown[..] {
        assert!([earlier, own].iter().all(|pagemap| pagemap.read_at(&mut [0; 8], 0).is_ok()));
        let mut counters = String::new();
        BufReader::new(vmstat).read_line(&mut counters).unwrap();
        write!(stream, ", {} since", if counters.starts_with("nr_") { "as" } else { "not" }).unwrap();
    } else {
        assert!(shown.is_empty() && earlier.is_none());
    }
    Response::Done
}

/// A copy that says whose it is to each child, and ends with the last of its connections.
fn copy(monitor: &Monitor, children: u32, mut descriptors: Vec<OwnedFd>) -> Response {
    if !monitor.state.lock().unwrap().pages.is_empty() {
        return Response::Refused(vec!["the memory of the VM is still on its way: gather it first".into()]);
    }
    let layers = descriptors.split_off(children as usize * PAGES_CONNECTIONS);
    assert!(!layers.is_empty() && layers.iter().all(|layer| rustix::fs::fstat(layer).unwrap().st_size > 0));
    let (ask, stdin) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let said = format!("copy of {} with {} layers", monitor.name, layers.len());
    let copier = Command::new(std::env::current_exe().unwrap()).args(["copier", &said]).stdin(stdin).output().unwrap();
    let pid = String::from_utf8(copier.stdout).unwrap().trim().parse().unwrap();
    let sockets: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let serve = Serve { connections: sockets.len() as u32, remote: None };
    Connection::from_fd(ask).send(&serve, &sockets).unwrap();
    let timings = ForkTimings { pause_us: 15, expected_pages: 0, ..ForkTimings::default() };
    Response::Serving(Serving { pid, disk_bytes: pages::PAGES * 4096, timings })
}

/// The disk is now of an instant that no other flush has: the journal says so, and the seeds that are forked until it goes on.
fn flush(monitor: &Monitor) -> Response {
    let mut state = monitor.state.lock().unwrap();
    assert_eq!(state.phase, Phase::Paused);
    if monitor.name == "unflushable" {
        return Response::Refused(vec!["cannot make the disk durable".into(), "disk map journal: no space".into()]);
    }
    state.flushed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos().to_string();
    write_anew(state.journal.as_ref().unwrap(), journal_of(&state.flushed).as_bytes());
    Response::Done
}

/// It writes to its disk, as any guest does.
fn go_on(monitor: &Monitor) -> Response {
    {
        let mut state = monitor.state.lock().unwrap();
        state.flushed.clear();
        if let Some(journal) = &state.journal {
            write_anew(journal, UNFLUSHED);
        }
        state.resumes += 1;
    }
    while monitor.name == "reluctant" && monitor.state.lock().unwrap().resumes == 1 {
        std::thread::sleep(std::time::Duration::from_millis(10)); // It is told twice.
    }
    shift(monitor, Phase::Running)
}

fn journal_of(instant: &str) -> String {
    format!("journal, flushed at {instant}")
}

fn write_anew(journal: &File, text: &[u8]) {
    journal.set_len(0).unwrap();
    journal.write_all_at(text, 0).unwrap();
}

fn shift(monitor: &Monitor, phase: Phase) -> Response {
    let mut state = monitor.state.lock().unwrap();
    state.phase = phase;
    state.pauses += u32::from(phase == Phase::Paused);
    Response::Done
}

fn spawn_child(monitor: &Monitor, control: OwnedFd) {
    let expected = monitor.state.lock().unwrap().expected.pages().to_string();
    let program = std::env::current_exe().unwrap();
    let flushed = monitor.state.lock().unwrap().flushed.clone();
    let mut seed = Command::new(program)
        .args(["seed", &monitor.name, &expected])
        .env(FLUSHED, flushed)
        .stdin(Stdio::from(control))
        .spawn()
        .unwrap();
    assert!(seed.wait().unwrap().success());
}
