//! VMs with toy guests, in this process.

use crate::files::Files;
use crate::image::{DiskImage, Image};
use crate::owner::Events;
use crate::platform::Twin;
use crate::vm::{StartError, Vm};
use pando_bench::Guest;
use pando_sys::Kvm;
use pando_wire::control::{StartNetwork, StartTimings};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The least that a guest can have.
pub(super) const MEMORY: u64 = 128 << 20;

/// A line of VMs, each made from the one before, and their files.
pub(super) struct Toys {
    dir: TempDir,
    count: usize,
    pub(super) events: Events,
    /// What a machine that boots has of a network.
    pub(super) network: Option<StartNetwork>,
    /// The tap of the next VM.
    pub(super) taps: Vec<OwnedFd>,
}

impl Toys {
    /// `None` where there is no KVM, which is said.
    pub(super) fn new() -> Option<Self> {
        if kvm().is_err() {
            eprintln!("skipped: /dev/kvm cannot be opened here");
            return None;
        }
        let (dir, events) = (tempfile::tempdir().unwrap(), Events::new().unwrap());
        Some(Self { dir, count: 0, events, network: None, taps: Vec::new() })
    }

    /// A VM that is about to enter `guest`.
    pub(super) fn boot(&mut self, guest: &Guest) -> Vm {
        let image = self.image(guest);
        self.start(image)
    }

    /// That, before it is one.
    pub(super) fn image(&self, guest: &Guest) -> Image {
        let at = |name: &str| self.dir.path().join(name);
        fs::write(at("base"), vec![0; guest.disk_bytes as usize]).unwrap();
        fs::write(at("kernel"), &guest.kernel).unwrap();
        fs::write(at("initramfs"), b"").unwrap();
        let open = |name| File::open(at(name)).unwrap();
        let disk = DiskImage::Fresh { len_bytes: guest.disk_bytes };
        let kvm = Kvm::from_fd(kvm().unwrap().into()).unwrap();
        let (kernel, initramfs) = (&mut open("kernel"), &mut open("initramfs"));
        Image::from_kernel(&kvm, &guest.boot(), self.network, kernel, initramfs, disk).unwrap()
    }

    /// A VM from an image, with files of its own.
    pub(super) fn start(&mut self, image: Image) -> Vm {
        self.try_start(image).unwrap()
    }

    /// The same, which may fail.
    pub(super) fn try_start(&mut self, image: Image) -> Result<Vm, StartError> {
        let files = Files {
            kvm: Kvm::from_fd(kvm().unwrap().into()).unwrap(),
            console: File::options().append(true).create(true).open(self.file("console", self.count)).unwrap(),
            vsock: UnixListener::bind(self.file("vsock", self.count)).unwrap(),
            taps: std::mem::take(&mut self.taps),
            disk: pando_disk::Files {
                base: File::open(self.dir.path().join("base")).unwrap(),
                inherited: (0..self.count).map(|index| File::open(self.file("data", index)).unwrap()).collect(),
                data: own(&self.file("data", self.count)),
                journal: own(&self.file("journal", self.count)),
            },
            layer: "the layer".into(),
        };
        self.count += 1;
        let twin = Twin { id: [1; 16], is_new: false };
        Vm::start(image, files, &twin, self.events.clone(), &mut StartTimings::default())
    }

    /// What the guest of the VM that was started last has written to its console.
    pub(super) fn console(&self) -> Vec<u8> {
        fs::read(self.file("console", self.count - 1)).unwrap()
    }

    /// The data of the layer that the VM that was started last writes.
    pub(super) fn data(&self) -> File {
        File::open(self.file("data", self.count - 1)).unwrap()
    }

    fn file(&self, name: &str, index: usize) -> PathBuf {
        self.dir.path().join(format!("{name}{index}"))
    }
}

fn kvm() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/kvm")
}

fn own(path: &Path) -> File {
    File::options().read(true).write(true).create_new(true).open(path).unwrap()
}
