//! Damage: found, named, and never read as if it were none.
#![allow(clippy::unwrap_used, reason = "a test that finds something else than it expects is to panic")]

mod common;

use common::{Pages, assert_memory, checkpoint, files, numbered, publish, temporary, write};
use pando_store::{Damage, Kind, Meter, PAGE_BYTES, ReadError, Store};
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A store with two checkpoints that share a chunk, and a disk that only one has.
fn sample() -> (tempfile::TempDir, Store) {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    let writer = store.writer().unwrap();
    let memory = write(&writer, Kind::Memory, 40, &Pages::from([(0, 2), (17, 4)])).unwrap();
    let disk = write(&writer, Kind::Disk, 40, &Pages::from([(0, 0), (3, 6)])).unwrap();
    writer.publish(&checkpoint("both", Some(memory), &[disk])).unwrap();
    drop(writer);
    publish(&store, "one", 40, &Pages::from([(0, 2)])).unwrap();
    (directory, store)
}

fn all_files(directory: &Path) -> Vec<PathBuf> {
    ["packs", "manifests", "checkpoints"].iter().flat_map(|folder| files(directory, folder)).collect()
}

/// Spoils a file, asks, and restores it.
fn with_spoilt<T>(path: &Path, bytes: &[u8], ask: impl FnOnce() -> T) -> T {
    let good = fs::read(path).unwrap();
    fs::write(path, bytes).unwrap();
    let answer = ask();
    fs::write(path, good).unwrap();
    answer
}

/// Reads everything. Whatever it says, it must not give other bytes than were written.
fn read_all(directory: &Path) -> bool {
    let all = || -> Result<(), Box<dyn Error>> {
        let store = Store::open(directory)?;
        for (name, expected) in [("both", Pages::from([(0, 2), (17, 4)])), ("one", Pages::from([(0, 2)]))] {
            let open = store.open_checkpoint(name)?;
            let memory = open.memory()?.ok_or("no memory")?;
            let mut bytes = [0; PAGE_BYTES];
            for at in 0..memory.pages() {
                memory.read_page(at, &mut bytes)?;
                let number = expected.get(&at).copied().unwrap_or(0);
                assert!(bytes == common::page(number), "{name}, page {at}: other bytes than were written");
            }
        }
        Ok(())
    };
    all().is_ok()
}

#[test]
fn every_flipped_bit_is_found_and_no_reader_gives_wrong_bytes() {
    let (directory, store) = sample();
    let meter = Meter::default();
    let verified = store.verify_watched(&meter).unwrap();
    assert_eq!(verified.damage, []);
    assert_eq!(meter.read(), (verified.packs as u64, verified.packs as u64));
    let mut flipped = 0;
    for path in all_files(directory.path()) {
        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            with_spoilt(&path, &bad, || {
                let damage = store.verify().unwrap().damage;
                assert!(damage.iter().any(|damage| damage.path == path), "bit {bit} of {}: {damage:?}", path.display());
                read_all(directory.path());
            });
            flipped += 1;
        }
    }
    assert!(flipped > 5000, "{flipped}");
    assert_eq!(store.verify().unwrap().damage, []);
    assert!(read_all(directory.path()));
}

#[test]
fn every_truncated_file_is_found() {
    let (directory, store) = sample();
    for path in all_files(directory.path()) {
        let good = fs::read(&path).unwrap();
        for len in (0..good.len()).step_by(7) {
            with_spoilt(&path, &good[..len], || {
                let damage = store.verify().unwrap().damage;
                assert!(damage.iter().any(|damage| damage.path == path), "cut to {len}: {damage:?}");
                read_all(directory.path());
            });
        }
        with_spoilt(&path, &[&good[..], b"more"].concat(), || {
            assert!(store.verify().unwrap().damage.iter().any(|damage| damage.path == path));
        });
    }
}

#[test]
fn verify_names_the_checkpoints_that_damage_affects_and_no_other() {
    let (directory, store) = sample();
    let pack_of_both = {
        let [pack] = files(directory.path(), "packs").try_into().unwrap();
        pack
    };
    // The chunk that both have comes first in the pack, or not: so every chunk is spoilt, one at a time.
    let good = fs::read(&pack_of_both).unwrap();
    let mut affected = Vec::new();
    for at in 48 + 3 * 40..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0xff;
        let damage = with_spoilt(&pack_of_both, &bad, || store.verify().unwrap().damage);
        let [Damage { problem, affected: names, .. }] = &damage[..] else { panic!("{damage:?}") };
        assert_eq!(problem, "its checksum is wrong");
        affected.push(names.join(" "));
    }
    affected.sort();
    affected.dedup();
    affected.retain(|names| !names.is_empty());
    assert_eq!(affected, ["both", "both one"]);
}

#[test]
fn a_missing_pack_or_manifest_is_named_with_what_it_takes_along() {
    let (directory, store) = sample();
    let [pack] = <[PathBuf; 1]>::try_from(files(directory.path(), "packs")).unwrap();
    let bytes = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    let damage = store.verify().unwrap().damage;
    let mut told: Vec<_> = damage.iter().map(|damage| (damage.problem.as_str(), damage.affected.join(" "))).collect();
    told.sort();
    let expected = [
        ("no pack has 1 pages of its disks", "both"),
        ("no pack has 1 pages of its memory", "one"),
        ("no pack has 2 pages of its memory", "both"),
    ];
    assert_eq!(told, expected.map(|(problem, name)| (problem, name.to_owned())));
    let open = Store::open(directory.path()).unwrap().open_checkpoint("both").unwrap();
    let memory = open.memory().unwrap().unwrap();
    let missing = memory.read_page(17, &mut [0; PAGE_BYTES]).unwrap_err();
    assert!(matches!(missing, ReadError::Missing { ref pages, .. } if *pages == (16..20)), "{missing}");
    assert!(missing.to_string().ends_with("is missing: pages 16 to 19 of checkpoint both are lost"), "{missing}");
    memory.read_page(33, &mut [0; PAGE_BYTES]).expect("a zero page needs no pack");
    fs::write(&pack, bytes).unwrap();

    let manifest = directory.path().join(format!("manifests/{}", store.checkpoint("one").unwrap().memory.unwrap()));
    fs::remove_file(&manifest).unwrap();
    let damage = store.verify().unwrap().damage;
    let [Damage { path, affected, .. }] = &damage[..] else { panic!("{damage:?}") };
    assert_eq!((path, &affected[..]), (&manifest, &["one".to_owned()][..]));
    let Err(refused) = store.open_checkpoint("one") else { panic!("half a checkpoint was opened") };
    assert_eq!(refused.to_string(), format!("cannot find {}", manifest.display()));
}

#[test]
fn a_damaged_chunk_is_an_error_that_names_it() {
    let (directory, _) = sample();
    let [pack] = <[PathBuf; 1]>::try_from(files(directory.path(), "packs")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    let chunks_at = 48 + 3 * 40;
    bytes[chunks_at..].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(&pack, bytes).unwrap();
    let open = Store::open(directory.path()).unwrap().open_checkpoint("one").unwrap();
    let refused = open.memory().unwrap().unwrap().read_page(0, &mut [0; PAGE_BYTES]).unwrap_err();
    let ReadError::Damaged { chunk, pack: named, .. } = &refused else { panic!("{refused}") };
    assert!(pack.ends_with(named.to_string()));
    let expected = format!("chunk {chunk} in pack {named} is damaged: pages 0 to 3 of checkpoint one are lost");
    assert_eq!(refused.to_string(), expected);
}

/// A file of a format that is to come.
fn newer(path: &Path) -> Vec<u8> {
    let mut file = fs::read(path).unwrap();
    file[8] = 2;
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&file[..24]);
    digest.update(&file[32..]);
    file[24..32].copy_from_slice(&digest.finalize().to_le_bytes());
    file
}

#[test]
fn a_store_from_a_newer_version_is_refused_in_one_sentence() {
    let (directory, store) = sample();
    let refusal = |path: &Path, ask: &dyn Fn() -> Result<(), Box<dyn Error>>| {
        let error = with_spoilt(path, &newer(path), ask).unwrap_err();
        let expected = "is of store format 2, and this build reads up to 1: a newer pando is needed";
        assert_eq!(error.to_string(), format!("{} {expected}", path.display()));
    };
    refusal(&directory.path().join("store"), &|| Ok(Store::open(directory.path()).map(drop)?));
    refusal(&directory.path().join("checkpoints/one"), &|| Ok(store.checkpoint("one").map(drop)?));
    let manifest = directory.path().join(format!("manifests/{}", store.checkpoint("one").unwrap().memory.unwrap()));
    refusal(&manifest, &|| Ok(store.open_checkpoint("one")?.memory().map(drop)?));
    refusal(&files(directory.path(), "packs")[0], &|| Ok(Store::open(directory.path())?.sizes().map(drop)?));
}

#[test]
fn a_flipped_bit_of_a_format_is_damage_of_one_file_and_stops_nothing_else() {
    let (directory, _) = sample();
    let store = Store::open(directory.path()).unwrap();
    publish(&store, "other", 50, &numbered(50, 700)).unwrap();
    let [first, second] = <[PathBuf; 2]>::try_from(files(directory.path(), "packs")).unwrap();
    for pack in [first, second] {
        let mut bad = fs::read(&pack).unwrap();
        bad[8] ^= 2;
        with_spoilt(&pack, &bad, || {
            let store = Store::open(directory.path()).unwrap();
            assert_eq!(store.sizes().unwrap().len(), 3);
            assert_eq!(store.collect().unwrap().damaged, std::slice::from_ref(&pack));
            let name = pack.file_name().unwrap().to_str().unwrap().to_owned();
            publish(&store, &name, 50, &numbered(50, 900)).unwrap();
            assert_memory(&store, &name, 50, &numbered(50, 900));
            store.remove(&name).unwrap();
        });
    }
}

#[test]
fn a_checkpoint_that_cannot_be_read_does_not_hide_the_sizes_of_others() {
    let (directory, store) = sample();
    let manifest = directory.path().join(format!("manifests/{}", store.checkpoint("one").unwrap().memory.unwrap()));
    let whole = store.sizes().unwrap();
    let told = with_spoilt(&manifest, b"nothing", || store.sizes().unwrap());
    assert_eq!(told[0].stored, whole[0].stored);
    assert_eq!(told[1].problem, Some(format!("{} cannot be used", manifest.display())));
    let checkpoint = directory.path().join("checkpoints/both");
    let told = with_spoilt(&checkpoint, b"nothing", || store.sizes().unwrap());
    assert_eq!(told[0].problem, Some(format!("{} cannot be used", checkpoint.display())));
    assert_eq!((told[1].stored, &told[1].problem), (whole[1].stored, &None));
}

#[test]
fn before_the_last_copy_goes_a_checkpoint_is_read_from_the_disk() {
    let (directory, store) = sample();
    assert_memory(&store, "one", 40, &Pages::from([(0, 2)]));
    assert_eq!(store.verify_checkpoint("both").unwrap(), 3 * PAGE_BYTES as u64);
    spoil_chunks(&files(directory.path(), "packs")[0]);
    assert_memory(&store, "one", 40, &Pages::from([(0, 2)])); // From the cache.
    let refused = store.verify_checkpoint("one").unwrap_err();
    assert!(refused.to_string().ends_with("is damaged: pages 0 to 3 of checkpoint one are lost"), "{refused}");
    assert_eq!(store.verify_checkpoint("none").unwrap_err().to_string(), "no checkpoint is called none");
}

#[test]
fn damage_of_the_mark_is_found_and_affects_all() {
    let (directory, store) = sample();
    let mark = directory.path().join("store");
    let damage = with_spoilt(&mark, b"nothing", || store.verify().unwrap().damage);
    let [Damage { path, affected, .. }] = &damage[..] else { panic!("{damage:?}") };
    assert_eq!((path, &affected[..]), (&mark, &["both".to_owned(), "one".to_owned()][..]));
}

#[test]
fn an_import_reads_no_more_than_it_can_use() {
    let (_directory, store) = sample();
    let mut export = Vec::new();
    store.export(&["one"], &mut export).unwrap();
    // What follows says that the next name is a gigabyte long, and a reader of tar would read it.
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader, tar::EntryType::XGlobalHeader] {
        let mut header = tar::Header::new_ustar();
        header.set_path("packs").unwrap();
        header.set_entry_type(kind);
        header.set_size(1 << 30);
        header.set_cksum();
        let mut stream =
            Counted { left: export[..1024].chain(&header.as_bytes()[..]).chain(std::io::repeat(b'x')), read: 0 };
        store.import(&mut stream).unwrap_err();
        assert!(stream.read < 1 << 20, "{} bytes were read", stream.read);
    }
    let mut folder = export.clone();
    folder[156] = b'5';
    store.import(&folder[..]).unwrap_err();
}

struct Counted<R> {
    left: R,
    read: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let len = self.left.read(bytes)?;
        self.read += len as u64;
        Ok(len)
    }
}

#[test]
fn what_is_damaged_here_is_not_exported() {
    let (directory, store) = sample();
    for path in files(directory.path(), "packs") {
        let mut bad = fs::read(&path).unwrap();
        *bad.last_mut().unwrap() ^= 1;
        let refused = with_spoilt(&path, &bad, || store.export(&["both"], std::io::sink())).unwrap_err();
        assert_eq!(refused.to_string(), format!("{} cannot be used", path.display()));
    }
}

#[test]
fn what_is_no_store_is_refused() {
    let directory = temporary();
    let Err(refused) = Store::open(directory.path()) else { panic!("an empty directory was opened") };
    assert!(refused.to_string().starts_with("cannot read "), "{refused}");
    fs::write(directory.path().join("store"), "something else entirely, and longer than a header").unwrap();
    let Err(refused) = Store::open(directory.path()) else { panic!("something else was opened") };
    assert_eq!(refused.source().unwrap().to_string(), "it is no file of a store");
}

#[test]
fn writing_again_what_is_damaged_repairs_nothing_silently_but_import_does() {
    let (directory, store) = sample();
    let mut export = Vec::new();
    store.export(&["both", "one"], &mut export).unwrap();
    let [pack] = <[PathBuf; 1]>::try_from(files(directory.path(), "packs")).unwrap();
    let mut bytes = fs::read(&pack).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&pack, bytes).unwrap();
    assert_eq!(store.verify().unwrap().damage.len(), 1);
    assert_eq!(store.import(&export[..]).unwrap(), ["both", "one"]);
    assert_eq!(store.verify().unwrap().damage, []);
}

/// A store of which two packs have chunks in common: of a checkpoint that was written and of one that came later.
fn with_copies() -> (tempfile::TempDir, [PathBuf; 2]) {
    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    publish(&other, "one", 100, &numbered(100, 1)).unwrap();
    let mut export = Vec::new();
    other.export(&["one"], &mut export).unwrap();
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "two", 110, &numbered(110, 1)).unwrap();
    store.import(&export[..]).unwrap();
    let packs = files(directory.path(), "packs").try_into().unwrap();
    (directory, packs)
}

/// Spoils every chunk of a pack, and not its index.
fn spoil_chunks(pack: &Path) {
    let mut bytes = fs::read(pack).unwrap();
    let count = u32::from_le_bytes(bytes[32..36].try_into().unwrap()) as usize;
    bytes[48 + 40 * count..].iter_mut().for_each(|byte| *byte ^= 0x55);
    fs::write(pack, bytes).unwrap();
}

#[test]
fn a_chunk_that_is_damaged_in_one_pack_is_read_from_another() {
    for spoilt in 0..2 {
        let (directory, packs) = with_copies();
        spoil_chunks(&packs[spoilt]);
        assert_memory(&Store::open(directory.path()).unwrap(), "one", 100, &numbered(100, 1));
    }
}

#[test]
fn garbage_collection_keeps_the_only_good_copy_of_a_chunk() {
    for spoilt in 0..2 {
        let (directory, packs) = with_copies();
        spoil_chunks(&packs[spoilt]);
        let store = Store::open(directory.path()).unwrap();
        store.collect().unwrap();
        store.collect().unwrap();
        assert_memory(&Store::open(directory.path()).unwrap(), "one", 100, &numbered(100, 1));
    }
    let (directory, _) = with_copies();
    let store = Store::open(directory.path()).unwrap();
    let collected = store.collect().unwrap();
    assert_eq!(collected.packs + collected.compacted, 1, "where both are good, one goes: {collected:?}");
    assert_memory(&store, "one", 100, &numbered(100, 1));
}

#[test]
fn a_reader_that_found_damage_finds_the_repair() {
    let (directory, store) = sample();
    let mut export = Vec::new();
    store.export(&["one"], &mut export).unwrap();
    spoil_chunks(&files(directory.path(), "packs")[0]);
    let store = Store::open(directory.path()).unwrap();
    let memory = store.open_checkpoint("one").unwrap().memory().unwrap().unwrap();
    let mut bytes = [0; PAGE_BYTES];
    assert!(matches!(memory.read_page(0, &mut bytes), Err(ReadError::Damaged { .. })));
    Store::open(directory.path()).unwrap().import(&export[..]).unwrap();
    memory.read_page(0, &mut bytes).unwrap();
    assert!(bytes == common::page(2));
}

#[test]
fn an_export_comes_back_equal_elsewhere() {
    let directory = temporary();
    let store = Store::create(directory.path()).unwrap();
    publish(&store, "one", 500, &numbered(500, 1)).unwrap();
    publish(&store, "two", 500, &numbered(500, 100)).unwrap();
    let mut export = Vec::new();
    store.export(&["one", "two"], &mut export).unwrap();

    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    publish(&other, "mine", 500, &numbered(500, 50)).unwrap();
    assert_eq!(other.import(&export[..]).unwrap(), ["one", "two"]);
    assert_eq!(other.import(&export[..]).unwrap(), ["one", "two"], "again, which changes nothing");
    assert_eq!(other.checkpoint("one").unwrap(), store.checkpoint("one").unwrap());
    assert_memory(&other, "one", 500, &numbered(500, 1));
    assert_memory(&other, "two", 500, &numbered(500, 100));
    assert_memory(&other, "mine", 500, &numbered(500, 50));
    other.collect().unwrap();
    assert_eq!(other.verify().unwrap().damage, []);
}

#[test]
fn a_cut_or_changed_export_leaves_no_checkpoint_behind() {
    let (_directory, store) = sample();
    let mut export = Vec::new();
    store.export(&["both"], &mut export).unwrap();
    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    publish(&other, "mine", 50, &numbered(50, 50)).unwrap();
    // The last kilobyte is the end mark of tar, and then comes padding.
    let checkpoint_at = export.len() - 1024 - 1024;
    for len in (0..checkpoint_at).step_by(101) {
        let refused = other.import(&export[..len]);
        assert!(refused.is_err(), "cut to {len}");
    }
    for byte in (0..checkpoint_at).step_by(13) {
        let mut bad = export.clone();
        bad[byte] ^= 0x10;
        // Fields of tar's header that nobody reads may change; content may not.
        if other.import(&bad[..]).is_ok() {
            assert_memory(&other, "both", 40, &Pages::from([(0, 2), (17, 4)]));
            other.remove("both").unwrap();
        }
    }
    assert_eq!(other.checkpoints().unwrap(), ["mine"]);
    other.collect().unwrap();
    assert_eq!(other.verify().unwrap().damage, []);
    assert_eq!(other.import(&b"no tar at all"[..]).unwrap_err().to_string(), "this is no export of checkpoints");
}

#[test]
fn an_import_does_not_replace_another_checkpoint_of_that_name() {
    let (_directory, store) = sample();
    let mut export = Vec::new();
    store.export(&["one"], &mut export).unwrap();
    let elsewhere = temporary();
    let other = Store::create(elsewhere.path()).unwrap();
    publish(&other, "one", 50, &numbered(50, 50)).unwrap();
    assert_eq!(other.import(&export[..]).unwrap_err().to_string(), "there is another checkpoint called one already");
    assert_memory(&other, "one", 50, &numbered(50, 50));
}
