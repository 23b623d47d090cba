//! What a seal has in common with an earlier one. Whatever is told to be unchanged is taken from what was told of the earlier
//! one: together, that is to be what is told where nothing is known of it, block by block.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use crate::fork::Sealed;
use crate::tests::Bench;
use crate::{BLOCK_BYTES, DATA_FILE, Disk, Run, Seal};

const BLOCK: usize = BLOCK_BYTES as usize;
const GROUP: u64 = 4;
/// The last group is half a one.
const BLOCKS: u64 = 30;
const MOST_AT_ONCE: usize = 3;

/// The blocks that a store would hold.
type Stored = BTreeMap<u64, Vec<u8>>;

/// What is told of a sealed disk: what was read, and what is unchanged.
fn told(sealed: &Sealed, data: &[File], earlier: Option<Seal>) -> (Stored, Vec<Range<u64>>) {
    let mut written = sealed.written(data, earlier, GROUP).unwrap();
    let (mut read, mut unchanged, mut bytes, mut next) = (Stored::new(), Vec::new(), Vec::new(), 0);
    while let Some(run) = written.next_run(MOST_AT_ONCE, &mut bytes).unwrap() {
        let blocks = match run {
            Run::Written(first) => first..first + (bytes.len() / BLOCK) as u64,
            Run::Unchanged(blocks) => {
                assert!(blocks.start.is_multiple_of(GROUP) && bytes.is_empty());
                assert!(blocks.end.is_multiple_of(GROUP) || blocks.end == BLOCKS);
                unchanged.push(blocks.clone());
                blocks
            }
        };
        assert!(next <= blocks.start && !blocks.is_empty() && blocks.end <= BLOCKS, "{blocks:?} behind {next}");
        next = blocks.end;
        read.extend(blocks.zip(bytes.chunks(BLOCK).map(<[u8]>::to_vec)));
    }
    (read, unchanged)
}

/// A seal that is past, and what happened to its disk since.
struct Past {
    seal: Seal,
    stored: Stored,
    /// Which VM's it is, and in which of its lives.
    of: (usize, usize),
    /// The groups that were written to since.
    touched: BTreeSet<u64>,
}

struct Vm {
    name: String,
    inherited: Vec<String>,
    disk: Disk,
    life: usize,
}

struct World {
    bench: Bench,
    vms: Vec<Vm>,
    past: Vec<Past>,
}

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
    Seal {
        vm: usize,
    },
    Fork {
        vm: usize,
    },
    /// The monitor is killed, and another one begins where it is found.
    Restart {
        vm: usize,
    },
}

impl World {
    fn new() -> Self {
        let bench = Bench::new(5 * BLOCK);
        let disk = bench.create("vm-0", BLOCKS * BLOCK_BYTES);
        let vm = Vm { name: "vm-0".into(), inherited: Vec::new(), disk, life: 0 };
        Self { bench, vms: vec![vm], past: Vec::new() }
    }

    fn step(&mut self, step: &Step) -> TestCaseResult {
        let count = self.vms.len();
        match *step {
            Step::Write { vm, offset, length, byte } => {
                let (at, vm) = (vm % count, &mut self.vms[vm % count]);
                let end = (BLOCKS as usize * BLOCK).min(offset + length);
                vm.disk.write_at(offset as u64, &vec![byte; end - offset]).unwrap();
                let groups = offset as u64 / BLOCK_BYTES / GROUP..=(end as u64 - 1) / BLOCK_BYTES / GROUP;
                for past in self.past.iter_mut().filter(|past| past.of == (at, vm.life)) {
                    past.touched.extend(groups.clone());
                }
            }
            Step::Flush { vm } => self.vms[vm % count].disk.flush().unwrap(),
            Step::Seal { vm } => self.seal(vm % count)?,
            Step::Fork { vm } if count < 4 => {
                let name = format!("vm-{count}");
                let parent = &mut self.vms[vm % count];
                let inherited = [parent.inherited.as_slice(), std::slice::from_ref(&parent.name)].concat();
                let layers: Vec<&str> = inherited.iter().map(String::as_str).collect();
                let disk = self.bench.fork(&mut parent.disk, &layers, &name);
                self.vms.push(Vm { name, inherited, disk, life: 0 });
            }
            Step::Fork { .. } => (),
            Step::Restart { vm } => {
                let vm = &mut self.vms[vm % count];
                let layers: Vec<&str> = vm.inherited.iter().map(String::as_str).collect();
                vm.disk = self.bench.recover(&vm.name, &layers).unwrap();
                vm.life += 1;
            }
        }
        Ok(())
    }

    /// Seals a disk, and holds that against all seals that are past, and those against it.
    fn seal(&mut self, vm: usize) -> TestCaseResult {
        let (of, vm) = ((vm, self.vms[vm].life), &mut self.vms[vm]);
        vm.disk.seal();
        let sealed = vm.disk.sealed_copy();
        let layers = vm.inherited.iter().chain([&vm.name]);
        let data: Vec<_> = layers.map(|name| File::open(self.bench.layer(name).join(DATA_FILE)).unwrap()).collect();
        let (stored, unchanged) = told(&sealed, &data, None);
        prop_assert_eq!(unchanged, vec![], "since nothing");
        for past in &self.past {
            let (mut together, unchanged) = told(&sealed, &data, Some(past.seal));
            for groups in &unchanged {
                together.extend(past.stored.range(groups.clone()).map(|(block, bytes)| (*block, bytes.clone())));
            }
            prop_assert!(together == stored, "what is unchanged since {:?} is not: {unchanged:?}", past.seal);
            if past.of != of {
                prop_assert_eq!(&unchanged, &vec![], "since {:?}, another disk's", past.seal);
                continue;
            }
            let held = |group: u64| stored.range(group * GROUP..(group + 1) * GROUP).next().is_some();
            let is_told = |group: u64| unchanged.iter().any(|blocks| blocks.contains(&(group * GROUP)));
            for group in (0..BLOCKS.div_ceil(GROUP)).filter(|group| held(*group)) {
                prop_assert_eq!(is_told(group), !past.touched.contains(&group), "group {} of {:?}", group, past.seal);
            }
        }
        self.past.push(Past { seal: sealed.seal(), stored, of, touched: BTreeSet::new() });
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vm = || 0..4_usize;
    let len = BLOCKS as usize * BLOCK;
    let write = (vm(), 0..len, 1..10_000_usize, any::<u8>()).prop_map(|(vm, offset, length, byte)| Step::Write {
        vm,
        offset,
        length,
        byte,
    });
    let step = prop_oneof![
        8 => write,
        2 => vm().prop_map(|vm| Step::Flush { vm }),
        6 => vm().prop_map(|vm| Step::Seal { vm }),
        1 => vm().prop_map(|vm| Step::Fork { vm }),
        1 => vm().prop_map(|vm| Step::Restart { vm }),
    ];
    prop::collection::vec(step, 1..50)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_unchanged_since_a_seal_is_what_was_not_written_since_and_holds_what_it_held(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step)?;
        }
    }
}

/// A save that failed is tried again, when a later checkpoint may be stored already.
#[test]
fn nothing_is_unchanged_since_a_later_seal() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", BLOCKS * BLOCK_BYTES);
    disk.write_at(0, &[1; 4 * BLOCK]).unwrap();
    disk.seal();
    let first = disk.sealed_copy();
    disk.write_at(0, &[2; BLOCK]).unwrap();
    disk.seal();
    let later = disk.sealed_copy().seal();

    let data = [File::open(bench.layer("vm").join(DATA_FILE)).unwrap()];
    let (read, unchanged) = told(&first, &data, Some(later));

    assert_eq!((read.len(), unchanged), (4, vec![]));
    let (_, unchanged) = told(&first, &data, Some(first.seal()));
    assert_eq!(unchanged.first(), Some(&(0..BLOCKS)), "and all since itself");
}

/// What a monitor did not flush is lost with it: then a block lies where it lay before, and no longer where a seal had it.
#[test]
fn nothing_is_unchanged_since_a_seal_of_an_earlier_life() {
    let bench = Bench::new(0);
    let mut disk = bench.create("vm", BLOCKS * BLOCK_BYTES);
    disk.write_at(0, &[1; BLOCK]).unwrap();
    disk.flush().unwrap();
    disk.write_at(BLOCK_BYTES, &[2; BLOCK]).unwrap();
    disk.seal();
    let before = disk.sealed_copy().seal();
    drop(disk);
    let mut disk = bench.recover("vm", &[]).unwrap();
    disk.seal();

    let data = [File::open(bench.layer("vm").join(DATA_FILE)).unwrap()];
    let (read, unchanged) = told(&disk.sealed_copy(), &data, Some(before));

    assert_eq!((read.len(), unchanged), (1, vec![]));
}
