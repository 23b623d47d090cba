//! A VM's life: the only way it begins, and how it stands still and goes on.

use crate::complaints::{chain, say};
use crate::device_loop::{self, DeviceThread};
use crate::files::Files;
use crate::gate::{Gate, Go, Parked, USUAL_PARK};
use crate::image::{DiskImage, Image, PAGE};
use crate::machine::MachineState;
use crate::owner::Events;
use crate::platform::{Host, Platform, PlatformError, Twin};
use crate::server::{Arriving, FillError};
use crate::vcpu::{self, Context, VcpuThread};
use pando_disk::{Disk, FlushError};
use pando_memory::HugePages;
use pando_sys::{SysError, VcpuState};
use pando_wire::control::{Phase, StartTimings, VcpuPlace, WorkingSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};
use vm_memory::GuestMemoryMmap;

/// A VM.
pub(crate) struct Vm {
    pub(crate) platform: Arc<Platform>,
    pub(crate) memory: GuestMemoryMmap,
    msrs: Arc<[u32]>,
    vm: Arc<pando_sys::Vm>,
    gate: Arc<Gate>,
    vcpus: Vec<VcpuThread>,
    devices: DeviceThread,
    parked: Receiver<Parked>,
    /// What children write first.
    pub(crate) expected: WorkingSet,
    /// What brings its memory, or has brought it.
    pub(crate) arriving: Option<Arc<Arriving>>,
    /// What makes huge pages of its memory, once that is shared.
    pub(crate) huge: HugePages,
    /// The vCPUs' states while all stand still.
    paused: Option<Vec<VcpuState>>,
    /// Whether the guest had ended when they were last seen to stand still.
    has_ended: bool,
}

/// Why a VM does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// KVM.
    #[error("cannot set up the virtual machine")]
    Kvm(#[from] SysError),
    /// Its disk.
    #[error("cannot open the disk")]
    Disk(#[from] pando_disk::OpenError),
    /// What is on it.
    #[error("cannot restore the disk")]
    Fill(#[from] FillError),
    /// Its devices.
    #[error("cannot set up the devices")]
    Platform(#[from] PlatformError),
    /// Its threads.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Why the disk of a VM is not known to be durable as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmFlushError {
    /// What the guest writes next would not be durable.
    #[error("only a VM that is paused is flushed")]
    Running,
    /// The disk.
    #[error("cannot make the disk durable")]
    Disk(#[from] FlushError),
}

impl Vm {
    /// The only way a VM begins. It stands still until it is resumed.
    pub(crate) fn start(
        image: Image,
        files: Files,
        twin: &Twin,
        events: Events,
        timings: &mut StartTimings,
    ) -> Result<Self, StartError> {
        let mut clock = Stopwatch(Instant::now());
        let Image { machine, memory, disk, expected, arriving } = image;
        let mut vm = pando_sys::Vm::create(&files.kvm)?;
        timings.create_vm_us = clock.lap_us();
        vm.map_memory(memory.clone())?;
        timings.memory_us = clock.lap_us();
        let vm = Arc::new(vm);
        let mut vcpus = Vec::new();
        for (id, state) in (0u8..).zip(&machine.vcpus) {
            let vcpu = vm.create_vcpu(id)?;
            vcpu.set_state(state)?;
            vcpus.push(vcpu);
        }
        vm.set_state(&machine.vm)?;
        timings.vcpus_us = clock.lap_us();
        if let Some(vcpu) = vcpus.first() {
            map_ahead(vcpu, &expected);
        }
        timings.map_us = clock.lap_us();
        let disk = open_disk(disk, files.disk)?;
        if disk.dropped_journal_bytes() > 0 {
            let (bytes, layer) = (disk.dropped_journal_bytes(), &files.layer);
            say(&format!(
                "pando: {bytes} bytes at the end of the disk's journal were not whole and are left out ({layer})"
            ));
        }
        let gate = Arc::new(Gate::new(vcpus.len()));
        let huge = HugePages::of(memory);
        let host = Host {
            console: files.console,
            vsock: files.vsock,
            taps: files.taps,
            layer: files.layer,
            arriving: arriving.clone(),
            huge: huge.clone(),
        };
        let platform =
            Platform::build(&machine.platform, twin, disk, host, Arc::clone(&vm), huge.memory(), gate.closed())?;
        let started = Self::spawn(vm, huge, Arc::new(platform), gate, machine, vcpus, events);
        timings.devices_us = clock.lap_us();
        let started = started.map_err(StartError::Thread)?;
        if let Some(arriving) = &arriving {
            arriving.pager.begin_fill();
        }
        Ok(Self { expected, arriving, ..started })
    }

    fn spawn(
        vm: Arc<pando_sys::Vm>,
        huge: HugePages,
        platform: Arc<Platform>,
        gate: Arc<Gate>,
        machine: MachineState,
        vcpus: Vec<pando_sys::Vcpu>,
        events: Events,
    ) -> io::Result<Self> {
        let (send_parked, parked) = channel();
        let context = Context {
            platform: Arc::clone(&platform),
            gate: Arc::clone(&gate),
            events,
            parked: send_parked.clone(),
            msrs: Arc::clone(&machine.msrs),
        };
        let threads = vcpus.into_iter().zip(&machine.vcpus).enumerate();
        let threads = threads.map(|(id, (vcpu, state))| vcpu::spawn(id, vcpu, state.cpuid.clone(), context.clone()));
        let vcpus = threads.collect::<Result<_, _>>()?;
        let devices = device_loop::spawn(Arc::clone(&platform), Arc::clone(&gate), send_parked)?;
        let (msrs, paused) = (machine.msrs, Some(machine.vcpus));
        let (expected, arriving, has_ended) = (WorkingSet::default(), None, false);
        let memory = huge.memory().clone();
        Ok(Self {
            platform,
            memory,
            expected,
            arriving,
            huge,
            msrs,
            vm,
            gate,
            vcpus,
            devices,
            parked,
            paused,
            has_ended,
        })
    }

    /// Where in its life the VM is.
    pub(crate) fn phase(&self) -> Phase {
        if self.paused.is_some() { Phase::Paused } else { Phase::Running }
    }

    /// Brings every vCPU and the devices to stand still. Does nothing when they do.
    pub(crate) fn pause(&mut self) -> Result<(), SysError> {
        if self.paused.is_some() {
            return Ok(());
        }
        self.gate.close();
        for vcpu in &self.vcpus {
            vcpu.kicker.kick();
            self.gate.between_kicks();
        }
        let told = self.vcpus.len() + usize::from(!self.devices.hold());
        self.collect(told)
    }

    /// Waits until so many threads stand still.
    fn collect(&mut self, threads: usize) -> Result<(), SysError> {
        let mut states: Vec<Option<VcpuState>> = self.vcpus.iter().map(|_| None).collect();
        let mut failed = None;
        for _ in 0..threads {
            match self.next_parked() {
                Parked::Vcpu { id, state, has_ended } => {
                    self.has_ended |= has_ended;
                    match state {
                        Ok(state) => states[id] = Some(*state),
                        Err(error) => failed = Some(error),
                    }
                }
                Parked::Devices => (),
            }
        }
        if let Some(error) = failed {
            self.go();
            return Err(error);
        }
        self.paused = Some(states.into_iter().flatten().collect());
        Ok(())
    }

    /// Has the vCPUs of a VM that stands still read their states anew, at the same instruction.
    #[cfg(test)]
    pub(crate) fn read_again(&mut self) -> Result<(), SysError> {
        self.paused = None;
        self.gate.close(); // Counts anew.
        for vcpu in &self.vcpus {
            vcpu.kicker.kick(); // The gate is closed, so this is as far as they get.
            let _ = vcpu.go.send(Go);
        }
        self.collect(self.vcpus.len())
    }

    /// Whether the guest had ended when the VM was paused: there is nothing to go on with, here or in a child.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Waits until the next thread stands still. Awake for as long as that usually takes: to fall asleep and be woken
    /// costs more.
    fn next_parked(&self) -> Parked {
        let begun = Instant::now();
        while begun.elapsed() < USUAL_PARK {
            match self.parked.try_recv() {
                Ok(parked) => return parked,
                Err(_) => thread::yield_now(),
            }
        }
        match self.parked.recv() {
            Ok(parked) => parked,
            Err(_) => unreachable!("a thread of the VM ends only with the owner, which is waiting here"),
        }
    }

    /// Undoes `pause`. Does nothing when the VM runs.
    pub(crate) fn resume(&mut self) {
        if self.paused.take().is_some() {
            self.go();
        }
    }

    /// Where the vCPUs are. They stand still for it.
    pub(crate) fn vcpu_places(&mut self) -> Result<Vec<VcpuPlace>, SysError> {
        let was_running = self.phase() == Phase::Running;
        self.pause()?;
        let place = |state: &VcpuState| {
            let (rip, rflags, is_halted) = (state.regs.rip, state.regs.rflags, state.is_halted());
            VcpuPlace { rip, rflags, is_halted }
        };
        let places = self.paused.iter().flatten().map(place).collect();
        if was_running {
            self.resume();
        }
        Ok(places)
    }

    /// Makes durable what the disk of a VM that stands still holds: nothing is written to it before it goes on.
    pub(crate) fn flush(&mut self) -> Result<(), VmFlushError> {
        match self.phase() {
            Phase::Paused => Ok(self.platform.flush_disk()?),
            Phase::Created | Phase::Running => Err(VmFlushError::Running),
        }
    }

    fn go(&mut self) {
        self.gate.open();
        for vcpu in &self.vcpus {
            // A thread ends only with the owner.
            let _ = vcpu.go.send(Go);
        }
        self.devices.go();
    }

    /// When the last of the vCPUs ran again after [`Vm::resume`].
    pub(crate) fn running_since(&self) -> Instant {
        self.gate.running_since()
    }

    /// The pages that this VM alone has: see [`Request::Touched`](pando_wire::control::Request::Touched).
    pub(crate) fn touched(&self, pagemap: &File) -> io::Result<WorkingSet> {
        let runs = pando_memory::private_pages(&self.memory, pagemap, &self.huge.made(), WorkingSet::MAX_PAGES)?;
        Ok(WorkingSet(runs.unwrap_or_default()))
    }

    /// Begins to make huge pages of what it has for itself: its memory is shared from now on. Without them it is only slower
    /// at a fork.
    pub(crate) fn begin_huge_pages(&self) {
        if let Err(error) = self.huge.begin() {
            say(&format!("pando: forks of this VM take longer than they need to: {}", chain(&error).join(": ")));
        }
    }

    /// The state of everything but memory and disk. `None` while the VM runs.
    pub(crate) fn machine_state(&self) -> Result<Option<MachineState>, SysError> {
        let Some(mut vcpus) = self.paused.clone() else { return Ok(None) };
        let (vm, msrs) = (self.vm.state()?, Arc::clone(&self.msrs));
        vm.read_tscs(&mut vcpus); // They may have stood still for long.
        Ok(Some(MachineState { vcpus, vm, platform: self.platform.state(), msrs }))
    }
}

/// Maps what the guest is going to need first. It is an offer: a guest for which it fails faults as it goes.
fn map_ahead(vcpu: &pando_sys::Vcpu, expected: &WorkingSet) {
    for &(first, pages) in &expected.0 {
        let (start, len) = (u64::from(first) * PAGE, u64::from(pages) * PAGE);
        if vcpu.map_ahead(start, len).is_err() {
            return;
        }
    }
}

fn open_disk(image: DiskImage, files: pando_disk::Files) -> Result<Disk, StartError> {
    Ok(match image {
        DiskImage::Fresh { len_bytes } => Disk::create(files, len_bytes)?,
        DiskImage::Kept { inherited_journals, is_alone } => {
            let mut disk = Disk::recover(files, inherited_journals)?;
            if is_alone {
                disk.thaw();
            }
            disk
        }
        DiskImage::Sealed(sealed) => Disk::branch(*sealed, files)?,
        DiskImage::Stored { len_bytes, server } => {
            let mut disk = Disk::create(files, len_bytes)?;
            server.fill(&mut disk)?;
            disk
        }
    })
}

/// Measures one step after the other.
pub(crate) struct Stopwatch(pub(crate) Instant);

impl Stopwatch {
    /// Microseconds since the last lap.
    pub(crate) fn lap_us(&mut self) -> u64 {
        self.lap_us_at(Instant::now())
    }

    /// The same, when the lap ended at `end`.
    pub(crate) fn lap_us_at(&mut self, end: Instant) -> u64 {
        micros(end - std::mem::replace(&mut self.0, end))
    }
}

/// Whole microseconds.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
