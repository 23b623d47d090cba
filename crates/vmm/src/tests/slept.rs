//! A machine whose state was kept, as bytes, and that goes on later.

use super::fields;
use super::law::{WITNESS, wait_for_laps};
use super::toys::{MEMORY, Toys};
use crate::image::{DiskImage, Image};
use crate::machine::{DecodeError, MachineState};
use crate::vm::Vm;
use pando_memory::{MMIO_DEVICE_LEN, MMIO_DEVICES};
use pando_sys::Tsc;
use pando_wire::control::WorkingSet;
use pando_wire::saved::Machine;
use std::thread;
use std::time::Duration;

pub(super) fn state(vm: &Vm) -> MachineState {
    vm.machine_state().unwrap().unwrap()
}

/// A machine in use, its state, and that as bytes.
pub(super) fn kept(toys: &mut Toys) -> (Vm, MachineState, Vec<u8>) {
    let mut vm = toys.boot(&WITNESS.guest(MEMORY));
    vm.resume();
    wait_for_laps(toys, 6);
    vm.pause().unwrap();
    let machine = state(&vm);
    let bytes = machine.encode().unwrap();
    (vm, machine, bytes)
}

/// Goes on with `machine` and the rest of `vm`.
pub(super) fn go_on(toys: &mut Toys, vm: &Vm, machine: MachineState) -> Vm {
    vm.platform.seal_disk();
    let disk = DiskImage::Sealed(Box::new(vm.platform.take_disk().unwrap().into_sealed()));
    let (memory, expected) = (vm.memory.clone(), WorkingSet::default());
    let mut next = toys.start(Image { machine, memory, disk, expected, arriving: None });
    next.read_again().unwrap();
    next
}

#[test]
fn a_machine_that_was_kept_as_bytes_is_the_same() {
    let Some(mut toys) = Toys::new() else { return };
    let (_vm, machine, bytes) = kept(&mut toys);
    let decoded = MachineState::decode(&machine.described(), &bytes).unwrap();
    let broken = fields::differences(&fields::of(&machine), &fields::of(&decoded));
    assert!(broken.is_empty(), "{broken:#?}");
    assert_eq!(decoded.encode().unwrap(), bytes);
    assert!(machine.described().cpu_features.iter().any(|feature| feature == "sse2"));
}

#[test]
fn bytes_that_are_no_machine_of_this_build_are_refused() {
    let Some(mut toys) = Toys::new() else { return };
    let (_vm, machine, bytes) = kept(&mut toys);
    let ours = machine.described();
    for other in [
        Machine { kind: "other".into(), ..ours.clone() },
        Machine { version: ours.version + 1, ..ours.clone() },
        Machine { arch: "arm64".into(), ..ours.clone() },
    ] {
        assert!(matches!(MachineState::decode(&other, &bytes), Err(DecodeError::Foreign { .. })), "{other:?}");
    }
    let malformed = |bytes: &[u8]| matches!(MachineState::decode(&ours, bytes), Err(DecodeError::Malformed));
    assert!((0..bytes.len()).step_by(997).all(|len| malformed(&bytes[..len])), "one that is cut");
    assert!(malformed(&[&bytes[..], &[0]].concat()), "one with something behind it");
    let many = MachineState { vcpus: vec![machine.vcpus[0].clone(); 33], ..machine.clone() };
    assert!(malformed(&many.encode().unwrap()), "one with more CPUs than there can be");
    assert!(malformed(&MachineState { vcpus: Vec::new(), ..machine }.encode().unwrap()), "one with none");
}

#[test]
fn a_machine_from_before_there_were_balloons_goes_on_without_one() {
    let Some(mut toys) = Toys::new() else { return };
    let (vm, machine, _) = kept(&mut toys);
    let old = MachineState { platform: machine.platform.clone().without_balloon(), ..machine };
    // Version 1 ends with the devices before it, and the MSRs; since then two bytes between them say that there is none, and
    // no network.
    let mut bytes = old.encode().unwrap();
    let behind = postcard::to_stdvec(&old.msrs[..]).unwrap().len();
    assert_eq!([0; 2].map(|_| bytes.remove(bytes.len() - behind - 1)), [0; 2]);
    let described = Machine { version: 1, ..old.described() };
    let decoded = MachineState::decode(&described, &bytes).unwrap();
    let broken = fields::differences(&fields::of(&old), &fields::of(&decoded));
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(MachineState::decode(&old.described(), &bytes).is_err(), "the version decides");
    assert!(MachineState::decode(&described, &bytes[..bytes.len() - 1]).is_err(), "one that is cut");

    let mut on = go_on(&mut toys, &vm, decoded);
    let magic = |device: u64| {
        let mut magic = [0; 4];
        let _ = on.platform.mmio_read(MMIO_DEVICES + device * MMIO_DEVICE_LEN, &mut magic);
        magic
    };
    assert_eq!([2, 3].map(magic), [*b"virt", [0; 4]], "what the guest did not find when it booted is not there now");
    let again = state(&on);
    assert!(!again.platform.has_balloon());
    let again = MachineState::decode(&again.described(), &again.encode().unwrap()).unwrap();
    assert!(!again.platform.has_balloon(), "nor later");
    on.resume();
    wait_for_laps(&toys, 6);
}

#[test]
fn a_machine_from_before_there_were_network_cards_goes_on_without_one() {
    let Some(mut toys) = Toys::new() else { return };
    let (vm, machine, mut bytes) = kept(&mut toys);
    let behind = postcard::to_stdvec(&machine.msrs[..]).unwrap().len();
    assert_eq!(bytes.remove(bytes.len() - behind - 1), 0, "there is none");
    let described = Machine { version: 2, ..machine.described() };
    let decoded = MachineState::decode(&described, &bytes).unwrap();
    let broken = fields::differences(&fields::of(&machine), &fields::of(&decoded));
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(MachineState::decode(&machine.described(), &bytes).is_err(), "the version decides");

    let mut on = go_on(&mut toys, &vm, decoded);
    let mut magic = [7; 4];
    let _ = on.platform.mmio_read(MMIO_DEVICES + 4 * MMIO_DEVICE_LEN, &mut magic);
    assert_eq!(magic, [0; 4]);
    assert!(!state(&on).platform.has_network());
    on.resume();
    wait_for_laps(&toys, 6);
}

#[test]
fn a_machine_that_slept_has_not_seen_the_time_pass() {
    let Some(mut toys) = Toys::new() else { return };
    let (vm, before, bytes) = kept(&mut toys);
    let ticks_since = |vm: &Vm, before: &MachineState| state(vm).vcpus[0].tsc_now - before.vcpus[0].tsc_now;

    thread::sleep(Duration::from_secs(2));
    let mut machine = MachineState::decode(&before.described(), &bytes).unwrap();
    machine.wake();
    let wanted: Vec<Tsc> = machine.vcpus.iter().map(|vcpu| vcpu.tsc).collect();
    let slept = go_on(&mut toys, &vm, machine);
    let got: Vec<Tsc> = state(&slept).vcpus.iter().map(|vcpu| vcpu.tsc).collect();
    if got != wanted {
        eprintln!("skipped: on this KVM, a guest's TSC is the host's");
        return;
    }
    let while_awake = ticks_since(&slept, &before);

    // The same once more, as a fork has it: there, time goes on.
    let before = state(&slept);
    thread::sleep(Duration::from_secs(2));
    let mut forked = go_on(&mut toys, &slept, before.clone());
    let in_two_seconds = ticks_since(&forked, &before);
    assert!(while_awake < in_two_seconds / 2, "{while_awake} ticks, and {in_two_seconds} in two seconds");
    forked.resume();
    wait_for_laps(&toys, 6);
}

#[test]
fn the_tsc_of_a_state_is_of_when_it_was_taken_and_not_of_when_the_cpus_came_to_stand_still() {
    let Some(mut toys) = Toys::new() else { return };
    let (vm, before, _) = kept(&mut toys);
    let Tsc::Offset(_) = before.vcpus[0].tsc else { return }; // KVM cannot tell, and a reading is all that there is.
    thread::sleep(Duration::from_millis(100));
    let halfway = state(&vm);
    thread::sleep(Duration::from_millis(100));
    let [first, second] = [(&before, &halfway), (&halfway, &state(&vm))]
        .map(|(from, to)| to.vcpus[0].tsc_now.wrapping_sub(from.vcpus[0].tsc_now));
    assert!(
        first > 0 && second > 0 && first / 10 < second,
        "{first} and {second} ticks in as much time as the clock saw"
    );
}
