//! What stands between a monitor and the store. The seed's stream is a line of text; a stored checkpoint is real.

use pando_store::{Bucket, Checkpoint, Kind, Machine, PAGE_BYTES, Store};
use pando_wire::control::{Connection, PAGES_CONNECTIONS};
use pando_wire::pages::{Remote, Serve};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The disk of everything that is stored, in pages.
pub(crate) const PAGES: u64 = 8;
/// Its RAM, in pages: what the daemon gives a VM of which nothing is said.
const MEMORY_PAGES: u64 = (512 << 20) / PAGE_BYTES as u64;

/// `pages save`: standard input says what is to be stored, and how it fails.
pub(crate) fn save(store: &str, name: &str, since: Option<&str>) {
    let mut said = String::new();
    std::io::stdin().read_to_string(&mut said).unwrap();
    assert!(said.is_empty() || said.ends_with("as since") == since.is_some(), "{said}, {since:?}");
    if let Some(since) = since {
        if said.contains("unwilling") {
            eprintln!("error: cannot store it\n  because: a chunk is missing");
            std::process::exit(1);
        }
        said += &format!(" {since}");
    }
    if said.is_empty() || said.contains("unsavable") {
        eprintln!("error: cannot store it\n  because: the disk is full");
        std::process::exit(1);
    }
    if said.contains("late-to-store") {
        std::thread::sleep(Duration::from_secs(2));
    }
    let has_disk = !said.contains("without its disk");
    let store = Store::create(Path::new(store)).unwrap();
    let writer = store.writer().unwrap();
    let layer = |kind, pages| {
        let mut layer = writer.layer(kind, pages).unwrap();
        layer.write(3, &[7; PAGE_BYTES]).unwrap();
        layer.finish().unwrap()
    };
    let machine = Machine {
        kind: "fake".into(),
        version: 1,
        arch: "x86_64".into(),
        cpu_features: Vec::new(),
        state: said.into_bytes(),
    };
    let memory = Some(layer(Kind::Memory, MEMORY_PAGES));
    let disks = if has_disk { vec![layer(Kind::Disk, PAGES)] } else { Vec::new() };
    let checkpoint = Checkpoint { name: name.into(), created_ms: 1, machine, memory, disks };
    writer.publish(&checkpoint).unwrap();
    println!(
        r#"{{"logical_bytes":{},"stored_bytes":{},"hashed_bytes":{}}}"#,
        (MEMORY_PAGES + PAGES) * PAGE_BYTES as u64,
        writer.new_bytes(),
        writer.hashed_bytes()
    );
}

/// A copy of a VM: says what it is on each child's first connection, and waits until all are closed.
pub(crate) fn copy(said: &str) {
    let packets = Connection::from_fd(rustix::stdio::stdin().try_clone_to_owned().unwrap());
    let (Serve { connections, .. }, sockets) = packets.receive().unwrap().unwrap();
    assert_eq!(connections as usize, sockets.len());
    let mut connections: Vec<_> = sockets.into_iter().map(UnixStream::from).collect();
    for first in connections.iter_mut().step_by(PAGES_CONNECTIONS) {
        first.write_all(format!("{said}\n").as_bytes()).unwrap();
    }
    for mut connection in connections {
        let _ = connection.read_to_end(&mut Vec::new());
    }
}

/// `pages serve`: says the state of the machine on the first connection, and waits until all are closed.
pub(crate) fn serve(store: &str, name: &str) {
    let packets = Connection::from_fd(rustix::stdio::stdin().try_clone_to_owned().unwrap());
    let (Serve { connections, remote }, sockets) = packets.receive().unwrap().unwrap();
    assert_eq!((connections as usize, sockets.len()), (PAGES_CONNECTIONS, PAGES_CONNECTIONS));
    let mut connections: Vec<_> = sockets.into_iter().map(UnixStream::from).collect();
    let checkpoint = match remote {
        None => Store::open(Path::new(store)).unwrap().checkpoint(name).unwrap(),
        Some(Remote { bucket, cache_bytes }) => {
            let bucket = Bucket::new(&pando_daemon::bucket_spec(bucket).unwrap()).unwrap();
            let cache = Store::create(Path::new(store)).unwrap();
            cache.attach_as_cache(&bucket, name, cache_bytes).unwrap().checkpoint().clone()
        }
    };
    let state = [checkpoint.machine.state.as_slice(), b"\n"].concat();
    connections[0].write_all(&state).unwrap();
    for mut connection in connections {
        let _ = connection.read_to_end(&mut Vec::new());
    }
}
