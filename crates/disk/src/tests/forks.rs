use std::fs;

use crate::tests::{Bench, power, read, spoil};
use crate::{BLOCK_BYTES, DATA_FILE, Disk, Files, JOURNAL_FILE, MAX_LAYERS, OpenError, Run};

const BLOCK: usize = BLOCK_BYTES as usize;

#[test]
fn a_child_keeps_what_the_parent_had_and_misses_what_it_does_next() {
    let bench = Bench::new(BLOCK);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"before").unwrap();

    let mut child = bench.fork(&mut parent, &["parent"], "child");
    parent.write_at(0, b"parent").unwrap();
    child.write_at(3, b"CHILD").unwrap();

    assert_eq!(read(&parent, 0, 6), b"parent");
    assert_eq!(read(&child, 0, 8), b"befCHILD");
}

#[test]
fn a_seal_moves_the_freeze_line_and_nothing_else() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, &[1; 3 * BLOCK]).unwrap();
    let before = disk.state();

    disk.seal();

    assert_eq!((before.frozen, disk.state().frozen), (0, 3));
    assert_eq!(disk.state().map_digest, before.map_digest);
    disk.write_at(0, &[2; BLOCK]).unwrap();
    assert_eq!(disk.state().next_slot, 4, "a frozen block gets a new slot");
    disk.write_at(0, &[3; BLOCK]).unwrap();
    assert_eq!(disk.state().next_slot, 4, "and keeps that one");
}

#[test]
fn a_child_begins_with_its_parents_map() {
    let bench = Bench::new(BLOCK);
    let mut parent = bench.create("parent", 8 * BLOCK_BYTES);
    parent.write_at(4096, &[1; 9000]).unwrap();

    let child = bench.fork(&mut parent, &["parent"], "child");

    assert_eq!(child.state().map_digest, parent.state().map_digest);
    assert_eq!((child.state().layers, child.state().next_slot), (2, 0));
}

#[test]
fn a_seed_gives_each_child_the_same_disk() {
    let bench = Bench::new(BLOCK);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"warm").unwrap();
    parent.seal();
    let seeds = [parent.sealed_copy(), parent.sealed_copy(), parent.sealed_copy()];

    let mut children: Vec<Disk> = (seeds.into_iter().enumerate())
        .map(|(n, seed)| Disk::branch(seed, bench.new_files(&format!("child-{n}"), &["parent"])).unwrap())
        .collect();
    for (n, child) in children.iter_mut().enumerate() {
        child.write_at(4, &[n as u8]).unwrap();
    }

    for (n, child) in children.iter().enumerate() {
        assert_eq!(read(child, 0, 5), [b"warm".as_slice(), &[n as u8]].concat());
    }
}

#[test]
fn what_was_written_is_told_from_all_layers_and_nothing_of_the_base() {
    let bench = Bench::new(8 * BLOCK);
    let mut parent = bench.create("parent", 16 * BLOCK_BYTES);
    parent.write_at(BLOCK_BYTES, &[1; 3 * BLOCK]).unwrap();
    parent.write_at(12 * BLOCK_BYTES, &[0; BLOCK]).unwrap();
    let mut child = bench.fork(&mut parent, &["parent"], "child");
    child.write_at(2 * BLOCK_BYTES, &[2; BLOCK]).unwrap();
    child.seal();
    let sealed = child.sealed_copy();
    child.write_at(2 * BLOCK_BYTES, &[9; BLOCK]).unwrap(); // After the seal.

    let data = ["parent", "child"].map(|name| fs::File::open(bench.layer(name).join(DATA_FILE)).unwrap());
    let mut written = sealed.written(&data, None, 1).unwrap();
    let (mut bytes, mut told) = (Vec::new(), Vec::new());
    while let Some(run) = written.next_run(2, &mut bytes).unwrap() {
        let Run::Written(first) = run else { panic!("unchanged since nothing: {run:?}") };
        told.extend((first..).zip(bytes.chunks(BLOCK).map(|block| block[0])));
        assert!(
            bytes.len() <= 2 * BLOCK && bytes.chunks(BLOCK).all(|block| block.iter().all(|byte| *byte == block[0]))
        );
    }

    assert_eq!(told, [(1, 1), (2, 2), (3, 1), (12, 0)]);
    let mut from = |block| {
        let mut written = sealed.written(&data, None, 1).unwrap();
        written.skip_to(block);
        written.next_run(2, &mut bytes).unwrap()
    };
    assert_eq!([0, 2, 4].map(&mut from), [1, 2, 12].map(|first| Some(Run::Written(first))));
    assert_eq!([13, 16, u64::MAX].map(from), [None, None, None]);
    assert_eq!((sealed.layers(), sealed.len_bytes()), (2, 16 * BLOCK_BYTES));
    assert!(matches!(sealed.written(&data[..1], None, 1), Err(OpenError::Inherited { found: 1, wanted: 2, .. })));
    fs::File::options().write(true).open(bench.layer("parent").join(DATA_FILE)).unwrap().set_len(BLOCK_BYTES).unwrap();
    assert!(matches!(sealed.written(&data, None, 1), Err(OpenError::ShortLayer { ordinal: 0, .. })));
}

#[test]
fn the_disk_of_the_forking_process_becomes_the_childs() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("parent", 4 * BLOCK_BYTES);
    disk.write_at(0, b"before").unwrap();
    disk.seal();

    let child = Disk::branch(disk.into_sealed(), bench.new_files("child", &["parent"])).unwrap();

    assert_eq!(read(&child, 0, 6), b"before");
}

#[test]
#[should_panic(expected = "a disk is sealed before it is forked")]
fn a_disk_that_was_not_sealed_is_not_forked() {
    let bench = Bench::new(BLOCK);
    let mut disk = bench.create("vm", 4 * BLOCK_BYTES);
    disk.write_at(0, b"x").unwrap();
    let _ = disk.into_sealed();
}

#[test]
fn generations_each_see_their_own_instant_also_after_a_kill() {
    let bench = Bench::new(BLOCK);
    let names: Vec<String> = (0..12).map(|n| format!("vm-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut disks = vec![bench.create(names[0], 16 * BLOCK_BYTES)];
    for n in 1..names.len() {
        let parent = disks.last_mut().unwrap();
        parent.write_at(n as u64 * BLOCK_BYTES, &[n as u8; BLOCK]).unwrap();
        if n % 3 == 0 {
            parent.flush().unwrap(); // Some generations are durable when they are forked, some are not.
        }
        let child = bench.fork(parent, &names[..n], names[n]);
        parent.write_at(n as u64 * BLOCK_BYTES, &[0xff; BLOCK]).unwrap();
        disks.push(child);
    }
    for disk in &mut disks {
        disk.flush().unwrap();
    }

    let expected = |own: usize, block: usize| match block {
        0 => read(&disks[0], 0, BLOCK),
        block if block <= own => vec![block as u8; BLOCK],
        block if block == own + 1 && block < names.len() => vec![0xff; BLOCK],
        _ => vec![0; BLOCK],
    };
    for (n, disk) in disks.iter().enumerate() {
        let recovered = bench.recover(names[n], &names[..n]).unwrap();
        assert_eq!(recovered.state().map_digest, disk.state().map_digest);
        for block in 0..16 {
            assert_eq!(read(disk, block as u64 * BLOCK_BYTES, BLOCK), expected(n, block), "vm {n}, block {block}");
            assert_eq!(read(&recovered, block as u64 * BLOCK_BYTES, BLOCK), expected(n, block));
        }
    }
}

#[test]
fn a_child_owes_nothing_to_what_its_parent_journals_later() {
    let bench = Bench::new(0);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"pending").unwrap();
    let mut child = bench.fork(&mut parent, &["parent"], "child");
    child.flush().unwrap();
    parent.write_at(0, b"changed").unwrap();
    parent.write_at(BLOCK_BYTES, b"more").unwrap();
    parent.flush().unwrap();
    drop(child);

    let child = bench.recover("child", &["parent"]).unwrap();

    assert_eq!(read(&child, 0, 7), b"pending");
    assert_eq!(read(&child, BLOCK_BYTES, 4), [0; 4]);
}

/// The parent dies before it ever flushed, and its child has journalled slots of the parent's layer that the parent's
/// journal never named. A parent that reused them would write into its child's disk.
#[test]
fn a_parent_that_comes_back_leaves_its_childrens_slots_alone() {
    let bench = Bench::new(0);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"the child reads this").unwrap();
    let mut child = bench.fork(&mut parent, &["parent"], "child");
    child.flush().unwrap();
    drop(parent);

    let mut parent = bench.recover("parent", &[]).unwrap();
    parent.write_at(0, &[0xff; BLOCK]).unwrap();
    parent.flush().unwrap();

    assert_eq!(read(&child, 0, 20), b"the child reads this");
}

#[test]
fn a_tree_that_is_too_deep_is_refused() {
    let bench = Bench::new(0);
    let mut disk = bench.create("root", 4 * BLOCK_BYTES);
    let data =
        |names: &[String]| names.iter().map(|n| fs::File::open(bench.layer(n).join(DATA_FILE)).unwrap()).collect();
    let mut names = vec!["root".to_owned()];
    for n in 1..=MAX_LAYERS {
        disk.write_at(0, &[n as u8; 8]).unwrap();
        disk.seal();
        let name = format!("vm-{n}");
        let (own, journal) = bench.new_layer(&name);
        let files = Files { base: bench.base(), inherited: data(&names), data: own, journal };
        match Disk::branch(disk.sealed_copy(), files) {
            Ok(child) => disk = child,
            Err(error) => {
                assert_eq!(n, MAX_LAYERS, "{error}");
                assert!(matches!(error, OpenError::TooDeep { layers } if layers == MAX_LAYERS + 1));
                return;
            }
        }
        names.push(name);
        assert_eq!(read(&disk, 0, 8), [n as u8; 8]);
    }
    panic!("{} layers were accepted", disk.layers());
}

#[test]
fn files_of_other_layers_are_refused() {
    let bench = Bench::new(0);
    let mut a = bench.create("a", 4 * BLOCK_BYTES);
    a.write_at(0, b"a").unwrap();
    a.flush().unwrap();
    let mut b = bench.create("b", 4 * BLOCK_BYTES);
    b.write_at(0, b"b").unwrap();
    b.flush().unwrap();
    let mut child = bench.fork(&mut a, &["a"], "child");
    child.flush().unwrap();

    assert!(matches!(bench.recover("child", &["b"]), Err(OpenError::Foreign { ordinal: 0 })));
    assert!(matches!(bench.recover("child", &[]), Err(OpenError::Inherited { found: 0, wanted: 1, .. })));
    assert!(matches!(bench.recover("child", &["a", "b"]), Err(OpenError::Inherited { found: 2, wanted: 1, .. })));
    assert!(bench.recover("child", &["a"]).is_ok());
}

#[test]
fn damage_in_an_ancestors_journal_is_found() {
    let bench = Bench::new(0);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"a").unwrap();
    parent.flush().unwrap();
    let record_at = fs::metadata(bench.layer("parent").join(JOURNAL_FILE)).unwrap().len() - 5;
    let mut child = bench.fork(&mut parent, &["parent"], "child");
    child.flush().unwrap();

    spoil(&bench.layer("parent").join(JOURNAL_FILE), record_at);

    assert!(matches!(bench.recover("child", &["parent"]), Err(OpenError::Damaged { ordinal: 0, .. })));
}

/// What the parent wrote in place before the fork was never synced. A child that was killed in between no longer knows
/// that, and still has to make it durable with its next flush.
#[test]
fn a_child_that_comes_back_syncs_what_its_parent_left() {
    let bench = Bench::new(0);
    let mut parent = bench.create("parent", 4 * BLOCK_BYTES);
    parent.write_at(0, b"old").unwrap();
    parent.flush().unwrap();
    parent.write_at(0, b"new").unwrap();
    drop(bench.fork(&mut parent, &["parent"], "child")); // Killed.
    drop(parent);

    let mut child = bench.recover("child", &["parent"]).unwrap();
    assert_eq!(read(&child, 0, 3), b"new");
    child.flush().unwrap();
    drop(child);
    for layer in ["parent", "child"] {
        power::cut(&bench.layer(layer).join(DATA_FILE), |_| 0);
        power::cut(&bench.layer(layer).join(JOURNAL_FILE), |_| 0);
    }

    assert_eq!(read(&bench.recover("child", &["parent"]).unwrap(), 0, 3), b"new");
}
