//! `VIRTIO_F_EVENT_IDX`: who tells whom, and when.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use vm_memory::GuestMemoryMmap;

use super::*;

const SHORT: usize = 60;

impl<T: TapQueue> Machine<T> {
    /// Offers a frame, and lets the device look once. Whether it interrupts.
    fn sends(&mut self) -> bool {
        self.say(0, &[&NOTHING, &frame(MAC, SHORT)]);
        self.transport.process(&self.driver.memory)
    }

    /// The same guest, after so many chains in the transmit queue.
    fn aged(mut self, taps: Vec<T>, position: u16) -> Self {
        let mut state = self.transport.state();
        (state.queues[TX].next_available, state.queues[TX].next_used) = (position, position);
        self.driver.begin_at(TX, position);
        let device = Net::restore(self.transport.device().state(), taps, Arc::clone(&self.halt)).unwrap();
        Self { transport: Transport::restore(device, state).unwrap(), ..self }
    }
}

#[test]
fn an_interrupt_comes_with_the_chain_that_the_driver_waits_for_and_with_no_other() {
    let (mut machine, _wire) = wired();
    machine.driver.interrupt_at(TX, 2);
    assert_eq!([0; 5].map(|_| machine.sends()), [false, false, true, false, false]);
    machine.driver.silence(TX, true);
    machine.driver.interrupt_at(TX, 5);
    assert!(machine.sends(), "flags mean nothing then");
}

#[test]
fn an_interrupt_comes_also_where_positions_wrap() {
    for (event, interrupts) in
        [(65_533, [false; 4]), (65_535, [false, true, false, false]), (0, [false, false, true, false])]
    {
        let wire = Wire::new();
        let machine = Machine::with(1, vec![wire.clone()], u64::MAX);
        let mut machine = machine.aged(vec![wire.clone()], 65_534);
        machine.transport.process(&machine.driver.memory);
        machine.driver.interrupt_at(TX, event);
        assert_eq!([0; 4].map(|_| machine.sends()), interrupts, "at {event}");
        assert_eq!(wire.state().from_guest.len(), 4);
        assert_eq!(machine.driver.avail_event(TX), 2);
    }
}

#[test]
fn a_frame_in_several_buffers_interrupts_for_any_of_them() {
    let (mut machine, wire) = wired();
    machine.lend(0, 60, 1600);
    for (event, is_told) in [(41, false), (81, true), (90, true), (300, false)] {
        machine.lend(0, 41, 1600);
        machine.driver.interrupt_at(RX, event);
        wire.arrives(&frame(OTHER, MAX_FRAME_BYTES));
        assert_eq!(machine.transport.process(&machine.driver.memory), is_told, "41 buffers more, at {event}");
    }
}

#[test]
fn a_driver_notifies_of_what_it_sends_while_the_device_is_at_it() {
    let (mut machine, wire) = wired();
    machine.say(0, &[&NOTHING, &frame(MAC, 100)]);
    assert!(machine.driver.must_notify(TX));
    machine.say(0, &[&NOTHING, &frame(MAC, 200)]);
    wire.state().meanwhile = Some(machine.driver.withhold(TX));
    machine.transport.process(&machine.driver.memory);
    assert_eq!(wire.state().from_guest.len(), 1, "a pass ends after what it found at its start");
    assert!(machine.driver.must_notify(TX));
    machine.say(0, &[&NOTHING, &frame(MAC, 300)]);
    assert!(!machine.driver.must_notify(TX), "once is enough");
    machine.transport.process(&machine.driver.memory);
    assert_eq!(wire.state().from_guest.len(), 3);
    machine.say(0, &[&NOTHING, &frame(MAC, 400)]);
    assert!(machine.driver.must_notify(TX));
}

#[test]
fn a_driver_notifies_of_receive_buffers_only_when_the_device_has_run_out_of_them() {
    let (mut machine, wire) = wired();
    machine.run();
    machine.lend(0, 2, 1600);
    machine.driver.must_notify(RX); // The first may be told of: rings begin with zeroes.
    for _ in 0..3 {
        wire.arrives(&frame(OTHER, SHORT));
        machine.run();
        assert!(machine.hear(0).is_some());
        machine.lend(0, 1, 1600);
        assert!(!machine.driver.must_notify(RX), "it has another buffer");
    }
    (0..3).for_each(|_| wire.arrives(&frame(OTHER, SHORT)));
    machine.run();
    assert_eq!([0; 3].map(|_| machine.hear(0).is_some()), [true, true, false]);
    machine.lend(0, 1, 1600);
    assert!(machine.driver.must_notify(RX), "a frame waits for it");
    machine.run();
    assert!(machine.hear(0).is_some());
}

#[test]
fn a_receive_buffer_that_nobody_notifies_of_is_found_by_the_frame_that_waits_for_it() {
    let (mut machine, wire) = wired();
    machine.lend(0, 2, 1600);
    machine.driver.must_notify(RX);
    wire.state().meanwhile = Some(machine.driver.withhold(RX));
    (0..2).for_each(|_| wire.arrives(&frame(OTHER, SHORT)));
    machine.run();
    assert_eq!([machine.hear(0), machine.hear(0)].map(|frame| frame.is_some()), [true; 2]);
}

#[test]
fn a_pause_in_the_midst_of_a_pass_loses_no_interrupt() {
    for (event, before, after) in [(0, true, false), (1, false, true)] {
        let wire = Wire::new();
        let mut parent = Machine::with(1, vec![wire.clone()], u64::MAX);
        parent.driver.interrupt_at(TX, event);
        (0..2).for_each(|_| parent.say(0, &[&NOTHING, &frame(MAC, SHORT)]));
        let halt = Arc::clone(&parent.halt);
        wire.state().meanwhile = Some(Box::new(move || halt.store(true, Ordering::SeqCst)));
        assert_eq!(parent.transport.process(&parent.driver.memory), before);
        assert_eq!(parent.counters().sent, 1);

        let mut child = parent.fork(wires(1));
        assert_eq!(child.transport.interrupt_pending(), before, "an interrupt on its way is repeated");
        child.transport.process(&child.driver.memory);
        assert_eq!(child.counters().sent, 1);
        let used = read32(&mut child.transport, 0x60) & 1 != 0;
        assert_eq!(used, before || after);
    }
}

#[test]
fn a_child_goes_by_what_the_driver_has_accepted() {
    for (features, interrupts) in [(u64::MAX, [false, true, false]), (NO_EVENTS, [true; 3])] {
        let parent = Machine::with(1, wires(1), features & !(1 << 21));
        parent.driver.interrupt_at(TX, 1);
        let mut child = parent.fork(wires(1));
        assert_eq!([0; 3].map(|_| child.sends()), interrupts);
    }
}

#[test]
fn a_driver_without_events_is_told_by_flags_and_its_rings_hold_none() {
    let (mut machine, wire) = wired();
    machine.sends();
    machine.come_up(NO_EVENTS);
    machine.driver.interrupt_at(TX, 9);
    assert!(machine.sends());
    machine.driver.silence(TX, true);
    machine.driver.interrupt_at(TX, 1);
    assert!(!machine.sends());
    machine.lend(0, 1, 1600);
    (0..2).for_each(|_| wire.arrives(&frame(OTHER, SHORT)));
    machine.run();
    assert!(machine.hear(0).is_some());
    assert_eq!([RX, TX].map(|queue| machine.driver.avail_event(queue)), [0; 2]);
}

/// Each side sleeps where nothing is there for it, and is woken by nobody but the other: one that missed a notification or
/// an interrupt would sleep for ever.
#[test]
fn driver_and_device_at_work_at_the_same_time_never_miss_each_other() {
    let wire = Wire::new();
    wire.state().is_loop = true;
    let (mut guest, device) = Guest::beside_its_device(wire);
    for round in 0..4000 {
        guest.round(1 + round % 3, round % 2 == 0);
    }
    guest.machine.halt.store(true, Ordering::SeqCst);
    ring(&guest.bell);
    device.join().unwrap();
}

/// A guest whose device is at work in another thread.
struct Guest {
    machine: Machine<Wire>,
    bell: Arc<OwnedFd>,
    interrupts: Receiver<()>,
}

impl Guest {
    fn beside_its_device(wire: Wire) -> (Self, JoinHandle<()>) {
        let mut machine = Machine::with(1, vec![wire], u64::MAX);
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap());
        let (interrupt, interrupts) = channel();
        let unused = Transport::new(Net::new(spec(1), wires(1), Arc::default()).unwrap());
        let transport = std::mem::replace(&mut machine.transport, unused);
        let (memory, halt, theirs) = (machine.driver.memory.clone(), Arc::clone(&machine.halt), Arc::clone(&bell));
        let device = thread::spawn(move || serve(transport, &memory, &halt, &theirs, &interrupt));
        (Self { machine, bell, interrupts }, device)
    }

    /// Sends frames, lends buffers for them before or after that, and waits for all to be back.
    fn round(&mut self, frames: usize, lends_first: bool) {
        if lends_first {
            self.lend(frames);
        }
        for _ in 0..frames {
            self.machine.say(0, &[&NOTHING, &frame(MAC, SHORT)]);
            self.notify(TX);
        }
        if !lends_first {
            self.lend(frames);
        }
        for _ in 0..frames {
            while self.machine.hear(0).is_none() {
                self.sleep(RX);
            }
            while self.machine.driver.take(TX).is_none() {
                self.sleep(TX);
            }
        }
    }

    fn lend(&mut self, count: usize) {
        for _ in 0..count {
            self.machine.lend(0, 1, 1600);
            self.notify(RX);
        }
    }

    fn notify(&mut self, queue: usize) {
        if self.machine.driver.must_notify(queue) {
            ring(&self.bell);
        }
    }

    fn sleep(&self, queue: usize) {
        if self.machine.driver.may_sleep(queue) {
            self.interrupts.recv_timeout(Duration::from_secs(20)).expect("nobody interrupts");
        }
    }
}

fn serve(
    mut transport: Transport<Net<Wire>>,
    memory: &GuestMemoryMmap,
    halt: &AtomicBool,
    bell: &OwnedFd,
    interrupt: &Sender<()>,
) {
    while !halt.load(Ordering::SeqCst) {
        if transport.process(memory) {
            interrupt.send(()).unwrap();
        }
        let host = transport.host_fd().unwrap();
        poll(&mut [PollFd::new(bell, PollFlags::IN), PollFd::new(&host, PollFlags::IN)], None).unwrap();
        let _ = rustix::io::read(bell, &mut [0u8; 8]); // There may be nothing to clear.
    }
}

fn ring(bell: &OwnedFd) {
    rustix::io::write(bell, &1u64.to_ne_bytes()).unwrap();
}
