//! Random histories of a tree of disks, each compared with a plain array after every step.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::tests::{Bench, base_contents, power, read};
use crate::{BLOCK_BYTES, DATA_FILE, Disk, JOURNAL_FILE};

const BLOCKS: u64 = 12;
const LEN: usize = (BLOCKS * BLOCK_BYTES) as usize;
/// The base ends in the middle of a block.
const BASE: usize = 6 * BLOCK_BYTES as usize + 700;
const SECTOR: usize = 512;
const MOST_VMS: usize = 8;

#[derive(Debug, Clone)]
enum Step {
    Write {
        vm: usize,
        offset: usize,
        length: usize,
        byte: u8,
    },
    Flush {
        vm: usize,
    },
    Fork {
        vm: usize,
    },
    /// The monitor is killed; the host lives.
    Kill {
        vm: usize,
    },
    /// The power goes, in the middle of a flush of `vm` after so many syncs.
    PowerCut {
        vm: usize,
        after_syncs: u32,
        random: u64,
    },
}

struct Vm {
    name: String,
    /// The names of the inherited layers.
    inherited: Vec<String>,
    disk: Option<Disk>,
    /// What the disk holds.
    contents: Vec<u8>,
    /// What each sector held at the last flush and since: what a power cut may leave.
    possible: Vec<Vec<Vec<u8>>>,
    /// Whether this VM must survive a power cut: it was flushed once, or is no child.
    promised: bool,
}

impl Vm {
    fn disk(&mut self) -> &mut Disk {
        self.disk.as_mut().unwrap()
    }

    fn note_contents(&mut self) {
        for (sector, possible) in self.contents.chunks(SECTOR).zip(&mut self.possible) {
            if !possible.iter().any(|known| known == sector) {
                possible.push(sector.to_vec());
            }
        }
    }

    fn flushed(&mut self) {
        self.possible = self.contents.chunks(SECTOR).map(|sector| vec![sector.to_vec()]).collect();
        self.promised = true;
    }
}

struct World {
    bench: Bench,
    vms: Vec<Vm>,
    /// Every layer that ever was: relatives may need it.
    layers: Vec<String>,
}

impl World {
    fn new() -> Self {
        let bench = Bench::new(BASE);
        let disk = Some(bench.create("vm-0", LEN as u64));
        let mut contents = base_contents(BASE);
        contents.resize(LEN, 0);
        let mut vm =
            Vm { name: "vm-0".into(), inherited: Vec::new(), disk, contents, possible: Vec::new(), promised: true };
        vm.flushed();
        Self { bench, vms: vec![vm], layers: vec!["vm-0".into()] }
    }

    fn step(&mut self, step: &Step) -> TestCaseResult {
        let count = self.vms.len();
        match *step {
            Step::Write { vm, offset, length, byte } => {
                let vm = &mut self.vms[vm % count];
                let end = LEN.min(offset + length);
                let data: Vec<u8> = (offset..end).map(|at| byte.wrapping_add((at / 100) as u8)).collect();
                vm.disk().write_at(offset as u64, &data).unwrap();
                vm.contents[offset..end].copy_from_slice(&data);
                vm.note_contents();
            }
            Step::Flush { vm } => {
                let vm = &mut self.vms[vm % count];
                vm.disk().flush().unwrap();
                vm.flushed();
            }
            Step::Fork { vm } if count < MOST_VMS => self.fork(vm % count),
            Step::Fork { .. } => (),
            Step::Kill { vm } => self.kill(vm % count)?,
            Step::PowerCut { vm, after_syncs, random } => {
                power::fail_syncs_after(Some(after_syncs));
                let flushed = self.vms[vm % count].disk().flush();
                power::fail_syncs_after(None);
                if flushed.is_ok() {
                    self.vms[vm % count].flushed();
                }
                self.power_cut(random)?;
            }
        }
        for vm in &mut self.vms {
            let found = read(vm.disk(), 0, LEN);
            prop_assert!(found == vm.contents, "{} differs", vm.name);
        }
        Ok(())
    }

    fn fork(&mut self, parent: usize) {
        let name = format!("vm-{}", self.layers.len());
        self.layers.push(name.clone());
        let parent = &mut self.vms[parent];
        let mut inherited = parent.inherited.clone();
        inherited.push(parent.name.clone());
        let layers: Vec<&str> = inherited.iter().map(String::as_str).collect();
        let disk = self.bench.fork(parent.disk.as_mut().unwrap(), &layers, &name);
        let (contents, possible) = (parent.contents.clone(), parent.possible.clone());
        self.vms.push(Vm { name, inherited, disk: Some(disk), contents, possible, promised: false });
    }

    /// What the kernel had is still there, but what a monitor knew and did not journal is not.
    fn kill(&mut self, vm: usize) -> TestCaseResult {
        let vm = &mut self.vms[vm];
        vm.disk = None;
        let layers: Vec<&str> = vm.inherited.iter().map(String::as_str).collect();
        let disk = self.bench.recover(&vm.name, &layers).unwrap();
        check_possible(vm, &disk)?;
        vm.contents = read(&disk, 0, LEN);
        vm.note_contents();
        vm.disk = Some(disk);
        Ok(())
    }

    fn power_cut(&mut self, mut random: u64) -> TestCaseResult {
        for vm in &mut self.vms {
            vm.disk = None;
        }
        let mut choose = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for layer in &self.layers {
            power::cut(&self.bench.layer(layer).join(DATA_FILE), &mut choose);
            power::cut(&self.bench.layer(layer).join(JOURNAL_FILE), &mut choose);
        }
        let bench = &self.bench;
        let mut failed = None;
        self.vms.retain_mut(|vm| {
            let layers: Vec<&str> = vm.inherited.iter().map(String::as_str).collect();
            match bench.recover(&vm.name, &layers) {
                Ok(disk) => {
                    failed = check_possible(vm, &disk).err().or(failed.take());
                    vm.contents = read(&disk, 0, LEN);
                    vm.flushed(); // What a power cut left is on the drive.
                    vm.disk = Some(disk);
                    true
                }
                Err(error) => {
                    if vm.promised {
                        failed = Some(TestCaseError::fail(format!("{} was flushed and is lost: {error:?}", vm.name)));
                    }
                    false
                }
            }
        });
        failed.map_or(Ok(()), Err)
    }
}

/// Each sector is what it was at the last flush, or what was written since.
fn check_possible(vm: &Vm, disk: &Disk) -> TestCaseResult {
    for (n, (found, possible)) in read(disk, 0, LEN).chunks(SECTOR).zip(&vm.possible).enumerate() {
        prop_assert!(possible.iter().any(|known| known == found), "{}: sector {n} holds what it never held", vm.name);
    }
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vm = || 0..MOST_VMS;
    let sectors = LEN / SECTOR;
    let write = prop_oneof![
        (vm(), 0..LEN, 1..10_000_usize, any::<u8>()).prop_map(|(vm, offset, length, byte)| (vm, offset, length, byte)),
        (vm(), 0..sectors, 1..24_usize, any::<u8>()).prop_map(|(vm, at, n, byte)| (vm, at * SECTOR, n * SECTOR, byte)),
    ]
    .prop_map(|(vm, offset, length, byte)| Step::Write { vm, offset, length, byte });
    let step = prop_oneof![
        8 => write,
        3 => vm().prop_map(|vm| Step::Flush { vm }),
        3 => vm().prop_map(|vm| Step::Fork { vm }),
        1 => vm().prop_map(|vm| Step::Kill { vm }),
        1 => (vm(), 0..5_u32, any::<u64>())
            .prop_map(|(vm, after_syncs, random)| Step::PowerCut { vm, after_syncs, random }),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_history_reads_like_a_plain_array_and_keeps_what_was_flushed(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step)?;
        }
    }
}
