//! Daemon ↔ monitor: the monitor opens no path, so every file it uses arrives here as a descriptor.
//!
//! A monitor listens on a `SOCK_SEQPACKET` Unix socket that its daemon bound and handed over as standard input. A
//! connection carries requests and their responses in turn, one packet each: postcard, descriptors attached.
//!
//! A VM, and every fork of it, keeps the monitor that it was booted with, also when the daemon is another one by now: a
//! daemon asks for [`Request::Status`] before anything else and compares [`Status::version`] with its own [`VERSION`].
//! So that this can always be asked and answered, variants and the fields of [`Status`] are only ever appended; the
//! tests below hold the encodings.
//!
//! Before [`Request::Start`] a monitor can only be watched, asked for its status, and killed; one made by a fork listens
//! on the socket that it was given in [`Request::Fork`] and waits for its own [`Request::Start`] there. One that waits so
//! is a *seed*: as long as nobody starts it, it can also be forked and saved.

mod socket; // packets with descriptors

use crate::network::MAX_QUEUE_PAIRS;
use serde::{Deserialize, Serialize};
pub use socket::{Connection, Listener};

/// The version of this language. Another one for every change that an older monitor would not understand.
pub const VERSION: u32 = 3;

/// What the daemon asks of a monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Begin to run. Descriptors: as [`Start`] lists them.
    Start(Start),
    /// Copy the running or paused VM. One descriptor per child: the listening control socket of that child, in order.
    ///
    /// A seed copies itself and stays one: nothing has to be paused, and of the timings only `fork_us`, which is also its
    /// `pause_us`, and `expected_pages` say something. A VM whose memory is still on its way ([`Origin::Checkpoint`])
    /// refuses, and goes on: [`Request::Gather`] comes first.
    Fork(Fork),
    /// Stop the vCPUs and devices where they are.
    Pause,
    /// Undo `Pause`.
    Resume,
    /// End the process now. The guest is not asked.
    Kill,
    /// What the VM is doing.
    Status,
    /// Which pages this VM alone has: what it has written since its fork. Descriptor: this monitor's
    /// `/proc/PID/pagemap` (read).
    Touched,
    /// The pages that a child of this VM, or of this seed, is going to write soon after its fork, as an earlier one did.
    Expect(WorkingSet),
    /// Keep this connection and send a [`Response::Ended`] when the VM ends.
    Watch,
    /// Write everything that this seed is into a socket. Descriptors: a connected `SOCK_STREAM` socket, then the data file
    /// of each layer of the seed's disk, oldest first (read): what a child's [`Start`] lists as inherited. With three more,
    /// what is still in the page frames of an earlier seed is said to be the [same](crate::saved::Part::Same), and not
    /// written: that seed's `/proc/PID/pagemap`, this seed's, and `/proc/vmstat` (read). Both are to have been forked, by
    /// however many forks, from the process that first had this memory. A monitor that does not know of these three
    /// refuses them.
    ///
    /// A process of its own writes, so that the seed can serve and end meanwhile. It is [`Done`](Response::Done) as soon
    /// as there is that process; that all was written, the reader learns from the end of the [stream](crate::saved).
    Save,
    /// Have all of the VM's memory there, so that it can be forked. [`Done`](Response::Done) at once, unless its memory is
    /// still on its way ([`Origin::Checkpoint`]): then it hurries, and this is answered when all has come. Meanwhile the
    /// VM runs, and requests on other connections are served. Refused when the VM ends before, with the reason.
    Gather,
    /// Make durable all that the disk of this VM, which is paused, holds: blocks, and the journal that says where they
    /// are. From then on until it is resumed, a power cut finds the disk as it is now. Refused with the reason where
    /// that cannot be, and while the VM runs.
    Flush,
    /// As [`Request::Save`], but for the disk, of which nothing is written: it stays where it is, for the same VM to go on
    /// with ([`Origin::Asleep`]). Descriptors: the socket, and with three more what is the same as in an earlier seed.
    SaveWithoutDisk,
    /// How the disk of this seed was sealed: [`Response::DiskSeal`].
    DiskSeal,
    /// [`Request::Save`], where an earlier seed's disk was sealed like this: blocks that still lie where they lay then are
    /// said to be the same, too, if it is the same disk.
    SaveSince(DiskSeal),
    /// What became of the frames of the VM's network card: [`Response::Frames`].
    Frames,
    /// Copy the running or paused VM, as [`Request::Fork`] does, into one process that serves [pages](crate::pages) as
    /// those of a store are served: so many children begin elsewhere and pull what they are made of from there
    /// ([`Origin::Checkpoint`]), at most [`MAX_PULLING`]. Descriptors: [`PAGES_CONNECTIONS`] connected `SOCK_STREAM` sockets
    /// for each child, then the data file of each layer of the VM's disk, oldest first, its own being the last (read). The
    /// process ends with the last of the connections. Answer: [`Response::Serving`].
    Serve(Fork),
    /// Where the VM's vCPUs are: [`Response::Vcpus`]. If it runs, it stands still for an instant.
    Vcpus,
}

/// What one seal of a disk is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSeal {
    /// Names what a monitor made of the disk's files, which another one does not have, unless it was forked from that
    /// without being started.
    pub life: [u8; 16],
    /// How many slots the last layer had: of two seals with one `life`, more at the later one.
    pub slots: u64,
}

/// The most children that one fork makes: each needs a descriptor in the same packet (`SCM_MAX_FD` is 253).
pub const MAX_CHILDREN: usize = 250;

/// The most children that pull from one copy of a VM: their connections share a packet with a file for each layer.
pub const MAX_PULLING: usize = 20;

/// How a VM begins.
///
/// Descriptors, in this order: `/dev/kvm`, console log (append), vsock listener (a `SOCK_STREAM` Unix listener), disk
/// base (read), one data file per inherited layer, oldest first (read), the own layer's data file and map journal
/// (read and write); for [`Origin::Boot`] then kernel and initramfs (read), and for [`Origin::Boot`] with
/// `recover_layers` one map journal per inherited layer (read); for [`Origin::Checkpoint`], which inherits no layers,
/// then [`PAGES_CONNECTIONS`] connected `SOCK_STREAM` sockets to a [page server](crate::pages), which is asked what there
/// is on the first; for [`Origin::Asleep`] these sockets, and then one map journal per inherited layer (read).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// Where the machine's state comes from.
    pub origin: Origin,
    /// What VMGENID shows: unique to this VM.
    pub generation: [u8; 16],
    /// How many inherited layers the disk has.
    pub inherited_layers: u32,
    /// What the monitor calls the disk's own layer when it has to complain of it: its path, which it never opens.
    pub layer: String,
    /// The host's end of the machine's network. A boot with one makes a machine that has a network device, and a fork or a
    /// checkpoint of that has it for ever; without one, its link is down. A machine that booted without one is refused it.
    pub network: Option<StartNetwork>,
}

/// The host's end of a network device: a tap, made with `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR` and `IFF_MULTI_QUEUE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartNetwork {
    /// How many of its queues come as descriptors: [`StartNetwork::of`] the machine's vCPUs, and no other number.
    pub queue_pairs: u8,
}

impl StartNetwork {
    /// That of a machine with `vcpus` vCPUs: a queue for each, up to [`MAX_QUEUE_PAIRS`].
    pub fn of(vcpus: u8) -> Self {
        Self { queue_pairs: vcpus.clamp(1, MAX_QUEUE_PAIRS) }
    }
}

/// Where a machine's state comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// Power-on.
    Boot(Boot),
    /// What this process inherited from its parent at a fork.
    Fork,
    /// What a page server has: a VM that was saved. Its memory comes as it is touched. A twin runs at once; the same VM
    /// stands still until it is resumed, as one from [`Origin::Asleep`] does.
    Checkpoint(Restore),
    /// The same, of the VM that was saved [without its disk](Request::SaveWithoutDisk): what its own layers hold is what
    /// they held then. It is [`Phase::Paused`] when it has started, and runs when it is resumed: from its first instruction
    /// on, what was saved no longer fits the disk, and whoever resumes it must have made sure that nobody goes on from
    /// that again.
    Asleep(Asleep),
}

/// How many connections to a page server a monitor has: so many pages can be on their way at a time, some of them those
/// that the guest waits for. On the last one it asks for its turn.
pub const PAGES_CONNECTIONS: usize = 6;

/// A machine at power-on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Boot {
    /// vCPUs, 1 to 32.
    pub vcpus: u8,
    /// RAM in bytes, a multiple of 2 MiB, to 64 GiB.
    pub memory_bytes: u64,
    /// The root disk in bytes: at least the base's length, a multiple of 4096. Unused with `recover_layers`.
    pub disk_bytes: u64,
    /// The kernel's command line, which the monitor completes with nothing.
    pub command_line: String,
    /// Whether the own layer holds data from an earlier life, to be found by its journal, rather than being empty.
    pub recover_layers: bool,
}

/// A machine that was saved, as the daemon knows it. The monitor refuses what the page server has where it is another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restore {
    /// vCPUs.
    pub vcpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// The root disk in bytes.
    pub disk_bytes: u64,
    /// Whether this is another VM than the one that was saved: its guest is told that its generation changed, as a
    /// fork's child is. Else it is the same one, which slept, and whose disk an earlier build saved with it.
    pub is_twin: bool,
}

/// A machine that was saved without its disk, as the daemon knows it. See [`Restore`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Asleep {
    /// vCPUs.
    pub vcpus: u8,
    /// RAM in bytes.
    pub memory_bytes: u64,
    /// Nobody else reads the disk's own layer, so that what is in it is overwritten in place.
    pub is_alone: bool,
}

/// A fork of the VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Fork {
    /// How many children, 1 to [`MAX_CHILDREN`].
    pub children: u32,
}

/// What a monitor answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Response {
    /// Done.
    Done,
    /// The VM runs; for a child, where its time went.
    Started(StartTimings),
    /// The fork is made and the parent runs on. The children report for themselves.
    Forked(ForkTimings),
    /// Answer to [`Request::Status`].
    Status(Status),
    /// Answer to [`Request::Touched`]. Empty when there are more than [`WorkingSet::MAX_PAGES`].
    Touched(WorkingSet),
    /// The VM has ended; the last message on every connection that watches.
    Ended(Ending),
    /// It could not be done, and nothing changed. The error and its causes, outermost first.
    Refused(Vec<String>),
    /// Answer to [`Request::DiskSeal`].
    DiskSeal(DiskSeal),
    /// Answer to [`Request::Frames`]; nothing in a machine without a network card.
    Frames(Option<Frames>),
    /// Answer to [`Request::Serve`]: the copy is made, and the VM runs on.
    Serving(Serving),
    /// Answer to [`Request::Vcpus`], in order.
    Vcpus(Vec<VcpuPlace>),
}

/// Where a vCPU is, for who wants to know why a guest does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuPlace {
    /// The instruction that it is at.
    pub rip: u64,
    /// Its flags: with bit 9 it takes interrupts.
    pub rflags: u64,
    /// It waits for an interrupt.
    pub is_halted: bool,
}

/// A copy of a VM that serves its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Its process id.
    pub pid: u32,
    /// The root disk in bytes.
    pub disk_bytes: u64,
    /// Where the time went.
    pub timings: ForkTimings,
}

/// Frames that came no further than the network card, since the monitor began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// Sent while the link was down.
    pub sent_without_link: u64,
    /// Sent with headers that cannot be, or too short for any.
    pub sent_malformed: u64,
    /// Sent, and longer than frames may be.
    pub sent_too_long: u64,
    /// Sent from another hardware address than the card's.
    pub sent_as_another: u64,
    /// Sent, and not taken by the tap.
    pub sent_refused: u64,
    /// Received, and longer than all buffers that the driver had for it.
    pub received_too_long: u64,
    /// Received, and not handed over by the tap.
    pub received_broken: u64,
}

/// Pages of guest memory.
///
/// Siblings write nearly the same pages first, because their kernels do the same work, so what one wrote is prepared for
/// the next: copied in one go, and mapped in one go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet(
    /// First page, and how many from there on; ascending. A page is 4096 bytes of guest-physical addresses.
    pub Vec<(u32, u32)>,
);

impl WorkingSet {
    /// A child that has written more is at work of its own, from which nothing can be learned: 8 MiB.
    pub const MAX_PAGES: u32 = 2048;

    /// How many pages these are.
    pub fn pages(&self) -> u32 {
        self.0.iter().fold(0, |pages, run| pages.saturating_add(run.1))
    }
}

/// Answer to [`Request::Status`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The monitor's [`VERSION`].
    pub version: u32,
    /// The monitor's process id.
    pub pid: u32,
    /// Where in its life the VM is.
    pub phase: Phase,
}

/// Where in its life a VM is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No `Start` yet.
    Created,
    /// The vCPUs run.
    Running,
    /// The vCPUs and the devices stand still.
    Paused,
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// [`Request::Kill`].
    Killed,
    /// The guest did what cannot be continued (a triple fault, an access that KVM cannot emulate).
    Crashed(String),
}

/// Where the time of a fork went, in microseconds, as the parent measured it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkTimings {
    /// From the first vCPU being told to stop until all run again: `park + save + seal + fork + resume`.
    pub pause_us: u64,
    /// Until every vCPU and device stood still.
    pub park_us: u64,
    /// Reading the state of vCPUs, interrupt controllers, clock and devices.
    pub save_us: u64,
    /// Freezing the top layer of the disk.
    pub seal_us: u64,
    /// `fork(2)` alone.
    pub fork_us: u64,
    /// Until every vCPU ran again.
    pub resume_us: u64,
    /// How many pages the children prepare because an earlier one wrote them.
    pub expected_pages: u32,
}

/// Where the time of a start went, in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartTimings {
    /// From the instant of the fork (or the start of a boot) until the first vCPU entered the guest.
    pub total_us: u64,
    /// Waiting for the seed to fork this child.
    pub seed_us: u64,
    /// Waiting for the daemon's `Start`.
    pub wait_us: u64,
    /// `KVM_CREATE_VM` and the interrupt controllers.
    pub create_vm_us: u64,
    /// Memory slots.
    pub memory_us: u64,
    /// Copying the pages that a sibling wrote first.
    pub copy_us: u64,
    /// Mapping them for the guest.
    pub map_us: u64,
    /// Creating the vCPUs and loading their state.
    pub vcpus_us: u64,
    /// Devices, disk and threads.
    pub devices_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(message: &impl Serialize) -> Vec<u8> {
        postcard::to_stdvec(message).unwrap()
    }

    /// A change here is a new [`VERSION`], unless it is a line more.
    #[test]
    fn every_request_is_encoded_as_ever() {
        let boot = Boot { vcpus: 2, memory_bytes: 3, disk_bytes: 4, command_line: "c".into(), recover_layers: true };
        let with = |origin, network| {
            Request::Start(Start { origin, generation: [7; 16], inherited_layers: 5, layer: "l".into(), network })
        };
        let start = |origin| with(origin, None);
        let rest = |head: &[u8]| [head, &[7; 16], &[5, 1, b'l', 0]].concat();
        assert_eq!(encoded(&start(Origin::Boot(boot))), rest(&[0, 0, 2, 3, 4, 1, b'c', 1]));
        assert_eq!(encoded(&start(Origin::Fork)), rest(&[0, 1]));
        let networked = [&[0, 1][..], &[7; 16], &[5, 1, b'l', 1, 6]].concat();
        assert_eq!(encoded(&with(Origin::Fork, Some(StartNetwork { queue_pairs: 6 }))), networked);
        let restore = Restore { vcpus: 2, memory_bytes: 3, disk_bytes: 4, is_twin: true };
        assert_eq!(encoded(&start(Origin::Checkpoint(restore))), rest(&[0, 2, 2, 3, 4, 1]));
        let asleep = Asleep { vcpus: 2, memory_bytes: 3, is_alone: true };
        assert_eq!(encoded(&start(Origin::Asleep(asleep))), rest(&[0, 3, 2, 3, 1]));
        assert_eq!(encoded(&Request::Fork(Fork { children: 9 })), [1, 9]);
        assert_eq!(encoded(&Request::Pause), [2]);
        assert_eq!(encoded(&Request::Resume), [3]);
        assert_eq!(encoded(&Request::Kill), [4]);
        assert_eq!(encoded(&Request::Status), [5]);
        assert_eq!(encoded(&Request::Touched), [6]);
        assert_eq!(encoded(&Request::Expect(WorkingSet(vec![(8, 9)]))), [7, 1, 8, 9]);
        assert_eq!(encoded(&Request::Watch), [8]);
        assert_eq!(encoded(&Request::Save), [9]);
        assert_eq!(encoded(&Request::Gather), [10]);
        assert_eq!(encoded(&Request::Flush), [11]);
        assert_eq!(encoded(&Request::SaveWithoutDisk), [12]);
        assert_eq!(encoded(&Request::DiskSeal), [13]);
        let seal = DiskSeal { life: [7; 16], slots: 5 };
        assert_eq!(encoded(&Request::SaveSince(seal)), [&[14][..], &[7; 16], &[5]].concat());
        assert_eq!(encoded(&Request::Frames), [15]);
        assert_eq!(encoded(&Request::Serve(Fork { children: 9 })), [16, 9]);
        assert_eq!(encoded(&Request::Vcpus), [17]);
    }

    /// See [`every_request_is_encoded_as_ever`].
    #[test]
    fn every_response_is_encoded_as_ever() {
        let started = StartTimings {
            total_us: 1,
            seed_us: 2,
            wait_us: 3,
            create_vm_us: 4,
            memory_us: 5,
            copy_us: 6,
            map_us: 7,
            vcpus_us: 8,
            devices_us: 9,
        };
        let forked = ForkTimings {
            pause_us: 1,
            park_us: 2,
            save_us: 3,
            seal_us: 4,
            fork_us: 5,
            resume_us: 6,
            expected_pages: 7,
        };
        let status = |phase| Response::Status(Status { version: 1, pid: 6, phase });
        assert_eq!(encoded(&Response::Done), [0]);
        assert_eq!(encoded(&Response::Started(started)), [1, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(encoded(&Response::Forked(forked)), [2, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(encoded(&status(Phase::Created)), [3, 1, 6, 0]);
        assert_eq!(encoded(&status(Phase::Running)), [3, 1, 6, 1]);
        assert_eq!(encoded(&status(Phase::Paused)), [3, 1, 6, 2]);
        assert_eq!(encoded(&Response::Touched(WorkingSet(vec![(8, 9)]))), [4, 1, 8, 9]);
        assert_eq!(encoded(&Response::Ended(Ending::PowerOff)), [5, 0]);
        assert_eq!(encoded(&Response::Ended(Ending::Reset)), [5, 1]);
        assert_eq!(encoded(&Response::Ended(Ending::Killed)), [5, 2]);
        assert_eq!(encoded(&Response::Ended(Ending::Crashed("c".into()))), [5, 3, 1, b'c']);
        assert_eq!(encoded(&Response::Refused(vec!["r".into()])), [6, 1, 1, b'r']);
        let seal = DiskSeal { life: [7; 16], slots: 5 };
        assert_eq!(encoded(&Response::DiskSeal(seal)), [&[7][..], &[7; 16], &[5]].concat());
        let frames = Frames {
            sent_without_link: 1,
            sent_malformed: 2,
            sent_too_long: 3,
            sent_as_another: 4,
            sent_refused: 5,
            received_too_long: 6,
            received_broken: 7,
        };
        assert_eq!(encoded(&Response::Frames(Some(frames))), [8, 1, 1, 2, 3, 4, 5, 6, 7]);
        let serving = Serving { pid: 8, disk_bytes: 9, timings: forked };
        assert_eq!(encoded(&Response::Serving(serving)), [9, 8, 9, 1, 2, 3, 4, 5, 6, 7]);
        let place = VcpuPlace { rip: 1, rflags: 2, is_halted: true };
        assert_eq!(encoded(&Response::Vcpus(vec![place])), [10, 1, 1, 2, 1]);
    }

    #[test]
    fn a_network_has_a_queue_for_each_cpu_up_to_its_limit() {
        let pairs = |vcpus| StartNetwork::of(vcpus).queue_pairs;
        assert_eq!([1, 2, 8, 9, 32].map(pairs), [1, 2, 8, 8, 8]);
    }

    #[test]
    fn a_status_with_more_fields_still_tells_its_version() {
        let newer = [3, 2, 6, 1, 77, 78];
        let Ok(Response::Status(status)) = postcard::from_bytes(&newer) else { panic!("not understood") };
        assert_eq!(status, Status { version: 2, pid: 6, phase: Phase::Running });
    }
}
