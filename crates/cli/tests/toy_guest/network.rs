//! A network card is above one tap, and nobody else has anything of that.

use crate::instant::wait_for_laps;
use crate::{LIMIT, MEMORY, PANDO, needs_kvm};
use pando_bench::{Monitor, MonitorError, Witness};
use pando_sys::tap_testing;
use pando_wire::control::{Request, Response};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

const WITNESS: Witness = Witness { vcpus: 2, pages: 8, records: 4 };

/// The queues of a tap for that guest, and its other end. `None` where none can be made, which is said.
fn tap() -> Option<(Vec<OwnedFd>, File)> {
    let made = tap_testing::tap(WITNESS.vcpus.into());
    if let Err(error) = &made {
        eprintln!("skipped: no tap can be made here: {error}");
    }
    made.ok().map(|(queues, far)| (queues, far.into()))
}

/// Whether the tap is still there, whose other end this is.
fn is_there(far: &mut File) -> bool {
    far.read(&mut [0; 2048]).map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true)
}

fn ends(far: &mut File) {
    let deadline = Instant::now() + LIMIT;
    while is_there(far) {
        assert!(Instant::now() < deadline, "somebody else has a queue of this tap");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_tap_ends_with_the_monitor_that_has_it_and_with_no_other() {
    if !needs_kvm() {
        return;
    }
    let (Some((own, mut far)), Some((childs, mut childs_far))) = (tap(), tap()) else { return };
    let parent = Monitor::boot_networked(PANDO.as_ref(), &WITNESS.guest(MEMORY), own).unwrap();
    wait_for_laps(&parent, WITNESS, 2, LIMIT);
    let (_, mut children) = parent.fork_networked(vec![childs, Vec::new()]).unwrap();
    drop(parent);
    ends(&mut far);
    assert!(is_there(&mut childs_far));
    for child in &children {
        wait_for_laps(&child.monitor, WITNESS, 4, LIMIT);
    }
    // One that had no tap has children that may have one, and that outlive it.
    let Some((grandchilds, mut grandchilds_far)) = tap() else { return };
    let (_, grandchildren) = children[1].monitor.fork_networked(vec![grandchilds]).unwrap();
    drop(children.remove(1));
    wait_for_laps(&grandchildren[0].monitor, WITNESS, 4, LIMIT);
    assert!(is_there(&mut childs_far) && is_there(&mut grandchilds_far));
    drop(children);
    ends(&mut childs_far);
    assert!(is_there(&mut grandchilds_far));
}

#[test]
fn a_guest_that_booted_without_a_network_is_refused_a_tap_and_has_no_harm_of_it() {
    if !needs_kvm() {
        return;
    }
    let Some((queues, _far)) = tap() else { return };
    let parent = Monitor::boot_guest(PANDO.as_ref(), &WITNESS.guest(MEMORY)).unwrap();
    wait_for_laps(&parent, WITNESS, 2, LIMIT);
    let refused = parent.fork_networked(vec![queues]).unwrap_err();
    let MonitorError::Refused(chain) = refused else { panic!("{refused}") };
    assert_eq!(chain, ["a machine that booted without a network cannot be given one"]);
    assert!(matches!(parent.ask(&Request::Status), Ok(Response::Status(_))));
    wait_for_laps(&parent, WITNESS, 4, LIMIT);
}
