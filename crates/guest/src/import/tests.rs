//! The promises of an import. e2fsprogs is the judge of what comes out.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use crate::import::{ImportError, ImportedImage, TreeError, import};

fn scratch() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn header(kind: EntryType, mode: u32, len_bytes: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(len_bytes);
    header.set_uid(1000);
    header.set_gid(100);
    header.set_mtime(1_600_000_000);
    header
}

/// An archive, built by `fill`.
fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    fill(&mut builder);
    builder.into_inner().unwrap()
}

fn add_file(builder: &mut Builder<Vec<u8>>, path: &str, contents: &[u8]) {
    builder.append_data(&mut header(EntryType::Regular, 0o644, contents.len() as u64), path, contents).unwrap();
}

fn add_link(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &str, target: &str) {
    builder.append_link(&mut header(kind, 0o777, 0), path, target).unwrap();
}

/// An entry whose name is written as it is, `..` and all.
fn add_raw(builder: &mut Builder<Vec<u8>>, kind: EntryType, path: &[u8], contents: &[u8]) {
    let mut header = header(kind, 0o644, contents.len() as u64);
    header.as_old_mut().name[..path.len()].copy_from_slice(path);
    header.set_cksum();
    builder.append(&header, contents).unwrap();
}

fn imported(input: &[u8], dir: &Path) -> ImportedImage {
    let image = import(input, dir, |_| ()).unwrap();
    check(&image.path);
    image
}

fn refused(input: &[u8]) -> ImportError {
    let dir = scratch();
    let error = import(input, dir.path(), |_| ()).unwrap_err();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left behind");
    error
}

/// Has e2fsck look for anything wrong.
fn check(image: &Path) {
    let output = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What debugfs answers.
fn debugfs(image: &Path, request: &str) -> Vec<u8> {
    Command::new("/usr/sbin/debugfs").args(["-R", request]).arg(image).stderr(Stdio::null()).output().unwrap().stdout
}

fn contents(image: &Path, path: &str) -> Vec<u8> {
    debugfs(image, &format!("cat {path}"))
}

/// Lazily: something on the host that looks into every new mount must not fail a test.
fn unmount(path: &Path) {
    assert!(Command::new("umount").arg("--lazy").arg(path).status().unwrap().success());
}

fn stat(image: &Path, path: &str) -> String {
    String::from_utf8(debugfs(image, &format!("stat {path}"))).unwrap()
}

fn has(image: &Path, path: &str, wanted: &[&str]) {
    let found = stat(image, path);
    for part in wanted {
        assert!(found.contains(part), "{path} has no {part:?}:\n{found}");
    }
}

#[test]
fn everything_that_a_root_file_system_has_is_kept() {
    let dir = scratch();
    let long = format!("{}/{}/file", "d".repeat(200), "e".repeat(200));
    let big: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let input = archive(|tar| {
        tar.append_data(&mut header(EntryType::Directory, 0o750, 0), "srv/", io::empty()).unwrap();
        add_file(tar, "srv/note", b"hello\n");
        add_file(tar, "srv/empty", b"");
        add_file(tar, "srv/big", &big);
        tar.append_data(&mut header(EntryType::Regular, 0o4755, 4), "usr/bin/su", b"root".as_slice()).unwrap();
        add_link(tar, EntryType::Symlink, "bin", "usr/bin");
        add_link(tar, EntryType::Symlink, "far", &"x/".repeat(100));
        add_link(tar, EntryType::Link, "srv/other", "srv/note");
        let mut device = header(EntryType::Char, 0o600, 0);
        device.set_device_major(5).unwrap();
        device.set_device_minor(300).unwrap();
        tar.append_data(&mut device, "dev/odd", io::empty()).unwrap();
        let mut disk = header(EntryType::Block, 0o660, 0);
        disk.set_device_major(254).unwrap();
        disk.set_device_minor(1).unwrap();
        tar.append_data(&mut disk, "dev/disk", io::empty()).unwrap();
        tar.append_data(&mut header(EntryType::Fifo, 0o622, 0), "run/pipe", io::empty()).unwrap();
        add_file(tar, &long, b"deep");
        tar.append_pax_extensions([
            ("mtime", b"-1.5".as_slice()),
            ("SCHILY.xattr.user.colour", b"green"),
            ("SCHILY.xattr.system.posix_acl_access", b"left out"),
            ("uid", b"123456"),
        ])
        .unwrap();
        add_file(tar, "srv/tagged", b"t");
    });

    let ImportedImage { path, size_bytes, digest } = imported(&input, dir.path());

    assert_eq!(path.file_name().unwrap().to_str().unwrap(), format!("{digest}.ext4"));
    assert_eq!(fs::metadata(&path).unwrap().len(), size_bytes);
    assert_eq!(contents(&path, "/srv/note"), b"hello\n");
    assert_eq!(contents(&path, "/srv/big"), big);
    assert_eq!(contents(&path, &format!("/{long}")), b"deep");
    has(&path, "/srv", &["Type: directory", "Mode:  0750", "User:  1000   Group:   100"]);
    has(&path, "/srv/note", &["Mode:  0644", "Links: 2", "mtime: 0x5f5e1000:00000000", "Size: 6"]);
    has(&path, "/srv/empty", &["Size: 0"]);
    has(&path, "/usr/bin/su", &["Mode:  04755"]);
    has(&path, "/usr", &["Type: directory", "Mode:  0755", "User:     0   Group:     0"]);
    has(&path, "/bin", &["Type: symlink", "\"usr/bin\""]);
    has(&path, "/far", &["Type: symlink", "Size: 200"]);
    has(&path, "/dev/odd", &["Type: character special", "Device major/minor number: 05:300"]);
    has(&path, "/dev/disk", &["Type: block special", "Device major/minor number: 254:01"]);
    has(&path, "/run/pipe", &["Type: FIFO"]);
    has(&path, "/srv/tagged", &["User: 123456", "user.colour (5) = \"green\"", "mtime: 0xfffffffe:77359400"]);
    assert!(!stat(&path, "/srv/tagged").contains("acl"));
    let inode = |path_in: &str| stat(&path, path_in).split_whitespace().nth(1).map(str::to_owned);
    assert_eq!(inode("/srv/note"), inode("/srv/other"));
}

#[test]
fn the_kernel_mounts_it_and_reads_the_same() {
    let dir = scratch();
    let input = archive(|tar| {
        add_file(tar, "etc/hostname", b"grove\n");
        (0..3000).for_each(|n| add_file(tar, &format!("many/file-{n}"), n.to_string().as_bytes()));
    });
    let image = imported(&input, dir.path());
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    let mount = Command::new("mount").args(["-o", "ro,loop"]).arg(&image.path).arg(&root).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        eprintln!("skipped: this host lets us mount nothing");
        return;
    }
    let hostname = fs::read(root.join("etc/hostname"));
    let many = fs::read_dir(root.join("many")).map(Iterator::count);
    let one = fs::read(root.join("many/file-2999"));
    unmount(&root);
    assert_eq!((hostname.unwrap(), many.unwrap(), one.unwrap()), (b"grove\n".to_vec(), 3000, b"2999".to_vec()));
}

#[test]
fn what_the_agent_needs_is_there_and_the_guest_has_room() {
    let dir = scratch();
    let image = imported(&archive(|tar| add_link(tar, EntryType::Symlink, "run", "var/run")), dir.path());
    for (path, mode) in [("/dev", "0755"), ("/etc", "0755"), ("/proc", "0755"), ("/sys", "0755"), ("/tmp", "01777")] {
        has(&image.path, path, &["Type: directory", &format!("Mode:  {mode}")]);
    }
    has(&image.path, "/run", &["Type: symlink"]);
    assert!(8 << 30 <= image.size_bytes);
    let on_host = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&image.path).unwrap()) * 512;
    assert!(on_host < 16 << 20, "{on_host} bytes for an empty image");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let dir = scratch();
    let input = archive(|tar| {
        add_file(tar, "a", b"first");
        add_file(tar, "a", b"second");
        add_file(tar, "d/child", b"kept");
        tar.append_data(&mut header(EntryType::Directory, 0o700, 0), "d", io::empty()).unwrap();
        add_file(tar, "gone/child", b"x");
        add_file(tar, "gone", b"a file now");
        add_file(tar, "becomes", b"x");
        add_file(tar, "becomes/a/directory", b"y");
        add_file(tar, "name", b"shared");
        add_link(tar, EntryType::Link, "still", "name");
        add_file(tar, "name", b"changed");
    });
    let image = imported(&input, dir.path()).path;
    assert_eq!(contents(&image, "/a"), b"second");
    assert_eq!(contents(&image, "/d/child"), b"kept");
    has(&image, "/d", &["Mode:  0700"]);
    assert_eq!(contents(&image, "/gone"), b"a file now");
    assert_eq!(contents(&image, "/becomes/a/directory"), b"y");
    assert_eq!(contents(&image, "/still"), b"shared");
    assert_eq!(contents(&image, "/name"), b"changed");
}

#[test]
fn no_name_leads_out_of_the_image() {
    let dir = scratch();
    let input = archive(|tar| {
        add_raw(tar, EntryType::Regular, b"/absolute", b"1");
        add_raw(tar, EntryType::Regular, b"../../up", b"2");
        add_raw(tar, EntryType::Regular, b"./x/../../y/./z", b"3");
        add_link(tar, EntryType::Symlink, "out", "../../../etc");
        add_raw(tar, EntryType::Regular, b"out/through", b"4");
        add_link(tar, EntryType::Symlink, "abs", "/srv/./deep");
        add_raw(tar, EntryType::Regular, b"abs/file", b"5");
        add_file(tar, "lost+found/old", b"6");
    });
    let image = imported(&input, dir.path()).path;
    for (path, wanted) in
        [("/absolute", b"1"), ("/up", b"2"), ("/y/z", b"3"), ("/etc/through", b"4"), ("/srv/deep/file", b"5")]
    {
        assert_eq!(contents(&image, path), wanted, "{path}");
    }
    assert_eq!(contents(&image, "/lost+found/old"), b"");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the image, and nothing else");
}

#[test]
fn sparse_files_stay_sparse() {
    for format in ["gnu", "posix"] {
        let dir = scratch();
        let out = scratch();
        let file = File::create(dir.path().join("holes")).unwrap();
        file.set_len(200 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 100 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"last", (200 << 20) - 4).unwrap();
        File::create(dir.path().join("nothing")).unwrap().set_len(1 << 20).unwrap();
        let tar =
            Command::new("tar").args(["-cS", "--format", format, "-C"]).arg(dir.path()).arg(".").output().unwrap();
        assert!(tar.status.success());

        let image = imported(&tar.stdout, out.path()).path;

        assert_eq!(contents(&image, "/holes"), fs::read(dir.path().join("holes")).unwrap(), "{format}");
        has(&image, "/holes", &["Size: 209715200", "Blockcount: 16"]);
        has(&image, "/nothing", &["Size: 1048576", "Blockcount: 0"]);
    }
}

#[test]
fn one_input_gives_one_image_however_it_is_compressed() {
    let dir = scratch();
    let plain = archive(|tar| add_file(tar, "a", &[7; 100_000]));
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();

    let image = imported(&plain, dir.path());
    let first = fs::metadata(&image.path).unwrap();
    assert_eq!(imported(&gzip.finish().unwrap(), dir.path()), image);
    assert_eq!(imported(&zstd, dir.path()), image);

    use std::os::unix::fs::MetadataExt;
    assert_eq!(fs::metadata(&image.path).unwrap().ino(), first.ino(), "what is there stays");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let other = imported(&archive(|tar| add_file(tar, "a", &[8; 100_000])), dir.path());
    assert_ne!(other.digest, image.digest);
}

#[test]
fn a_raw_file_system_is_taken_as_it_is() {
    let dir = scratch();
    let out = scratch();
    let raw = dir.path().join("raw");
    File::create(&raw).unwrap().set_len(64 << 20).unwrap();
    let mkfs = Command::new("/usr/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&raw).status().unwrap();
    assert!(mkfs.success());
    let bytes = fs::read(&raw).unwrap();

    let image = imported(&bytes, out.path());

    assert_eq!(image.size_bytes, 64 << 20);
    assert!(fs::read(&image.path).unwrap() == bytes);
    let zstd = zstd::stream::encode_all(bytes.as_slice(), 1).unwrap();
    assert_eq!(imported(&zstd, out.path()), image);
    let again = import(File::open(&image.path).unwrap(), out.path(), |_| ()).unwrap();
    assert_eq!(again, image);
    assert!(matches!(refused(&bytes[..bytes.len() - 1]), ImportError::Truncated));
    assert!(matches!(refused(&bytes[..3000]), ImportError::Truncated));
}

#[test]
fn what_is_no_image_is_refused_in_one_sentence() {
    assert!(matches!(refused(b""), ImportError::Empty));
    assert!(matches!(refused(&archive(|_| ())), ImportError::Empty));
    assert!(matches!(refused(b"#!/bin/sh\nexit 1\n"), ImportError::NotAnImage));
    assert!(matches!(refused(&[b'x'; 5000]), ImportError::NotAnImage));
    assert!(refused(b"x").to_string().starts_with("the image is neither"));
}

#[test]
fn a_truncated_archive_is_refused_wherever_it_ends() {
    let plain = archive(|tar| {
        add_file(tar, "a", &[1; 700]);
        tar.append_pax_extensions([("mtime", b"1.5".as_slice())]).unwrap();
        add_file(tar, "b", &[2; 10]);
    });
    let end_of_entries = plain.len() - 1024;
    for len in (512..=end_of_entries).step_by(100).chain([end_of_entries]) {
        assert!(matches!(refused(&plain[..len]), ImportError::Truncated), "{len} of {}", plain.len());
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&plain).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
    for compressed in [gzip, zstd] {
        for cut in [1, 4, 20] {
            let error = refused(&compressed[..compressed.len() - cut]);
            assert!(matches!(error, ImportError::Truncated), "{cut}: {error:?}");
        }
    }
}

#[test]
fn a_damaged_archive_is_refused() {
    let mut plain = archive(|tar| {
        add_file(tar, "a", b"a");
        add_file(tar, "b", b"b");
    });
    plain[1024] ^= 1; // In the name of the second file.
    assert!(matches!(refused(&plain), ImportError::Damaged { .. }));

    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&archive(|tar| add_file(tar, "a", &[1; 10_000]))).unwrap();
    let mut gzip = gzip.finish().unwrap();
    gzip[5000] ^= 1;
    assert!(matches!(refused(&gzip), ImportError::Damaged { .. }));
}

#[test]
fn entries_that_cannot_be_are_refused_by_name() {
    let entry_error = |fill: &dyn Fn(&mut Builder<Vec<u8>>)| match refused(&archive(|tar| fill(tar))) {
        ImportError::Entry { path, source } => (path, source),
        other => panic!("{other:?}"),
    };
    let no_target = entry_error(&|tar| add_link(tar, EntryType::Link, "a", "b"));
    assert_eq!(no_target, ("a".into(), TreeError::NoTarget { target: "b".into() }));
    let directory = entry_error(&|tar| {
        add_file(tar, "d/x", b"");
        add_link(tar, EntryType::Link, "a", "d");
    });
    assert_eq!(directory.1, TreeError::DirectoryTarget { target: "d".into() });
    let circle = entry_error(&|tar| {
        add_link(tar, EntryType::Symlink, "a", "b");
        add_link(tar, EntryType::Symlink, "b", "a");
        add_file(tar, "a/x", b"");
    });
    assert_eq!(circle.1, TreeError::Loop);
    assert_eq!(entry_error(&|tar| add_file(tar, &"n".repeat(256), b"")).1, TreeError::NameTooLong);
    assert_eq!(entry_error(&|tar| add_raw(tar, EntryType::Regular, b"caf\xe9", b"")).1, TreeError::NotText);
    assert_eq!(entry_error(&|tar| add_raw(tar, EntryType::Symlink, b"to-nothing", b"")).1, TreeError::Target);
    assert_eq!(entry_error(&|tar| add_raw(tar, EntryType::Regular, b"..", b"")).1, TreeError::Root);

    let multi_volume = refused(&archive(|tar| add_raw(tar, EntryType::new(b'M'), b"part", b"")));
    assert!(matches!(multi_volume, ImportError::Unsupported { .. }), "{multi_volume:?}");
}

#[test]
fn a_name_without_end_is_refused_before_it_fills_the_memory() {
    let endless = archive(|tar| add_raw(tar, EntryType::GNULongName, b"././@LongLink", &vec![b'n'; 3 << 20]));
    assert!(matches!(refused(&endless), ImportError::HeaderTooLarge));
}

#[test]
fn a_file_that_claims_to_be_endless_is_refused() {
    let mut header = header(EntryType::Regular, 0o644, 1 << 60);
    header.set_path("a").unwrap();
    header.set_cksum();
    assert!(matches!(refused(header.as_bytes()), ImportError::TooLarge));
}

#[test]
fn a_source_that_fails_is_told_from_a_bad_archive() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "gone"))
        }
    }
    let dir = scratch();
    let start = archive(|tar| add_file(tar, "a", &[1; 10_000]));
    let error = import(start[..6000].chain(Fails), dir.path(), |_| ()).unwrap_err();
    assert!(matches!(error, ImportError::Read { source } if source.kind() == io::ErrorKind::ConnectionReset));
}

#[test]
fn a_full_host_is_said_to_be_full_and_nothing_is_left() {
    let dir = scratch();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(dir.path()).output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        eprintln!("skipped: this host lets us mount nothing");
        return;
    }
    let input = archive(|tar| add_file(tar, "a", &vec![1; 3 << 20]));
    let result = import(input.as_slice(), dir.path(), |_| ());
    let left = fs::read_dir(dir.path()).map(Iterator::count);
    unmount(dir.path());
    assert!(matches!(result, Err(ImportError::NoSpace { .. })), "{result:?}");
    assert_eq!(left.unwrap(), 0);
}

#[test]
fn progress_counts_what_was_read() {
    let dir = scratch();
    let input = archive(|tar| add_file(tar, "a", &vec![1; 5 << 20]));
    let mut told = Vec::new();
    import(input.as_slice(), dir.path(), |bytes| told.push(bytes)).unwrap();
    assert!(4 <= told.len() && told.is_sorted(), "{told:?}");
    assert_eq!(told.last(), Some(&(input.len() as u64)));
}
