//! A VM boots, and its agent does what it is asked.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{TestDaemon, TestVm, prepared, setting};
use pando_wire::api::State;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// One boot for all tests that do no harm.
fn vm() -> &'static TestVm<'static> {
    static VM: LazyLock<TestVm<'static>> = LazyLock::new(|| TestDaemon::shared().boot("shared"));
    &VM
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_output_and_the_status_of_a_program_come_back() {
    let run = vm().exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((run.code, &*run.stdout, &*run.stderr), (7, "out\n", "err\n"));
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_program_that_a_signal_ended_says_which() {
    assert_eq!(vm().exec(&["sh", "-c", "kill -TERM $$"]).code, 128 + 15);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_program_gets_the_environment_the_folder_and_the_user_asked_for() {
    let script = "echo $COLOUR; pwd; id -u; id -g; id -G";
    let options = ["-e", "COLOUR=green", "-w", "/tmp", "-u", "guest"];
    let text = vm().exec_with(&options, &["sh", "-c", script], &[]).ok();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["green", "/tmp", "1000", "1000", "1000 29"]);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn standard_input_arrives_whole_and_ends() {
    let input = vec![b'x'; 300_000];
    assert_eq!(vm().exec_with(&["-i"], &["wc", "-c"], &input).ok(), "300000");
    assert_eq!(vm().exec(&["cat"]).ok(), "", "without -i there is none");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn megabytes_of_output_come_back_whole() {
    let run = vm().exec(&["sh", "-c", "dd if=/dev/zero bs=64k count=64 2>/dev/null | tr '\\0' z"]);
    assert_eq!((run.code, run.stdout.len()), (0, 4 << 20));
    assert!(run.stdout.bytes().all(|byte| byte == b'z'));
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn no_such_program_is_127_and_one_that_may_not_run_126() {
    vm().exec(&["no-such-program"]).refused(127);
    vm().exec(&["/etc/passwd"]).refused(126);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_program_with_a_terminal_has_one_that_controls_it() {
    let text =
        vm().exec_with(&["-t"], &["sh", "-c", "tty; test -t 0 && test -t 1 && echo both; : >/dev/tty"], &[]).ok();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    assert!(lines[0].starts_with("/dev/pts/"), "{text:?}");
    assert_eq!(lines[1..], ["both"]);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_program_that_takes_too_long_is_ended_and_the_status_is_124() {
    let run = vm().exec_with(&["--timeout", "2s"], &["sleep", "54321"], &[]);
    assert_eq!(run.code, 124, "{}", run.stderr);
    assert!(vm().running("sleep 54321").is_empty(), "it still runs");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_folder_goes_in_and_comes_back_as_it_was() {
    let (daemon, vm) = (TestDaemon::shared(), vm());
    let here = daemon.folder().join("cp");
    let site = here.join("site");
    fs::create_dir_all(site.join("deep/er")).unwrap();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(site.join("deep/er/data"), &bytes).unwrap();
    fs::write(site.join("tool"), "#!/bin/sh\necho works\n").unwrap();
    fs::set_permissions(site.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/er/data", site.join("link")).unwrap();

    daemon.pando(&["cp", &text(&site), "shared:/root"]).ok();
    assert_eq!(
        vm.sh("/root/site/tool; readlink /root/site/link; wc -c < /root/site/link"),
        "works\ndeep/er/data\n3000000"
    );

    let back = here.join("back");
    daemon.pando(&["cp", "shared:/root/site", &text(&back)]).ok();
    assert_eq!(fs::read(back.join("deep/er/data")).unwrap(), bytes);
    assert_eq!(fs::read_link(back.join("link")).unwrap(), Path::new("deep/er/data"));
    assert_eq!(fs::metadata(back.join("tool")).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_knows_its_name_and_has_the_memory_the_cpus_and_the_command_asked_for() {
    let options = ["--memory", "512M", "--cpus", "2", "--disk", "16G"];
    let vm = TestDaemon::shared().boot_with("sized", &options, &["sleep", "86400"]);
    assert_ne!(vm.sh("pidof sleep; true"), "", "it runs before the VM is said to be up");
    assert_eq!(vm.sh("hostname"), "sized");
    assert_eq!(vm.sh("nproc"), "2");
    assert_eq!(vm.sh("cat /etc/machine-id"), vm.inspect().id.replace('-', ""));
    let kib: u64 = vm.sh("awk '/MemTotal/ {print $2}' /proc/meminfo").parse().unwrap();
    assert!(400 << 10 < kib && kib <= 512 << 10, "{kib} KiB");
    assert_eq!(vm.sh("cat /sys/block/vda/size"), (16_u64 << 30 >> 9).to_string());
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_command_of_a_vm_runs_with_its_environment_and_writes_to_the_console() {
    let options = ["--memory", "256M", "-e", "WORD=hello", "-w", "/data"];
    let vm = TestDaemon::shared().boot_with("command", &options, &["sh", "-c", "echo \"$WORD from $PWD\"; exit 3"]);
    let seen = || vm.console().contains("hello from /data") && vm.console().contains("exited with status 3");
    pando_tests::wait_for("the command's words", std::time::Duration::from_secs(30), seen);
    assert_eq!(vm.sh("echo $WORD"), "hello", "every exec has the VM's environment");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_vm_that_was_stopped_starts_again_with_its_files() {
    let daemon = TestDaemon::shared();
    let vm = daemon.boot("again");
    vm.write("/data/note", "kept");
    // It does not heed SIGTERM, has a file open for writing, and takes its time to die: so much memory goes first.
    let program = "trap '' TERM; exec 3>/data/open; mkfifo /tmp/never; \
                   exec awk 'BEGIN { s = sprintf(\"%90000000s\", \"\"); getline < \"/tmp/never\" }'";
    vm.write("/data/stubborn", program);
    vm.start("sh /data/stubborn");
    pando_tests::wait_for("it has its memory", std::time::Duration::from_secs(60), || {
        vm.sh("awk '/VmRSS/ { print ($2 > 80000) }' /proc/$(pidof awk)/status 2>/dev/null; true").contains('1')
    });
    daemon.pando(&["stop", "--timeout", "60s", "again"]).ok();
    assert_eq!(vm.wait_until_stopped().0, "powered off");
    vm.exec(&["true"]).refused(1);

    daemon.pando(&["start", "again"]).ok();
    assert_eq!(vm.inspect().state, State::Running);
    assert_eq!(vm.read("/data/note"), "kept");
    assert!(!vm.sh("dmesg").contains("recovery complete"), "the file system was not unmounted at the power-off");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn a_guest_may_power_itself_off_or_crash_and_the_vm_says_so() {
    let daemon = TestDaemon::shared();
    let vm = daemon.boot("poweroff");
    vm.exec(&["poweroff", "-f"]);
    assert_eq!(vm.wait_until_stopped().0, "powered off");

    daemon.pando(&["start", "poweroff"]).ok();
    vm.exec(&["sh", "-c", "sleep 1; echo c > /proc/sysrq-trigger"]);
    assert_eq!(vm.wait_until_stopped().0, "reset", "a panic reboots, and a VM that resets ends");
    assert!(vm.console().contains("sysrq triggered crash"), "the console has the panic");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn an_elf_kernel_boots_as_well_as_a_compressed_one() {
    let kernel = vmlinux(TestDaemon::shared().folder());
    let options = ["--memory", "256M", "--kernel", &text(&kernel)];
    let vm = TestDaemon::shared().boot_with("elf", &options, &[]);
    assert_eq!(vm.sh("uname -s"), "Linux");
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn what_cannot_boot_is_refused_with_one_clear_sentence() {
    let daemon = TestDaemon::shared();
    vm(); // Its image is needed.
    let refused = |options: &[&str], code: i32, words: &str| {
        let mut args = vec!["run", "--name", "never"];
        args.extend(options);
        args.push(daemon.image());
        let told = daemon.pando(&args).refused(code);
        assert!(told.contains(words), "{options:?} said: {told}");
        assert!(daemon.vm("never").is_none() || daemon.pando(&["rm", "-f", "never"]).code == 0);
    };
    refused(&["--memory", "64M"], 2, "64M is not in 128M to 64G");
    refused(&["--kernel", "/no/such/kernel"], 3, "/no/such/kernel");
    refused(&["--kernel", "/etc/passwd"], 1, "kernel");
    refused(&["--disk", "1M"], 1, "disk");
    daemon.pando(&["run", "/no/such/image"]).refused(3);
    assert!(daemon.monitors().len() <= daemon.vms().len(), "no monitor is left behind");
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The kernel of the cache folder as an ELF file, with its modules beside it.
fn vmlinux(folder: &Path) -> PathBuf {
    let image = find(&prepared(setting::CACHE), |name| name.starts_with("vmlinuz-") && name.contains("cloud"));
    let image = image.expect("a kernel in the cache folder");
    let bytes = fs::read(&image).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    // The boot protocol: setup sectors at 0x1f1, payload offset (behind them) and length at 0x248 and 0x24c.
    let start = (usize::from(bytes[0x1f1]) + 1) * 512 + word(0x248);
    let payload = &bytes[start..start + word(0x24c)];
    let packed = folder.join("payload");
    fs::write(&packed, payload).unwrap();
    let tool = match payload {
        [0xfd, b'7', b'z', ..] => "xz -dc --single-stream",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd -dcq",
        [0x1f, 0x8b, ..] => "gzip -dc",
        _ => panic!("the kernel is packed in a way that this test does not know: {:x?}", &payload[..6]),
    };
    let kernel = folder.join("elf/vmlinux");
    fs::create_dir_all(folder.join("elf")).unwrap();
    // The payload ends with its unpacked length, of which some tools complain.
    let script = format!("{tool} < '{}' > '{}' 2>/dev/null; true", packed.display(), kernel.display());
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert_eq!(fs::read(&kernel).unwrap()[..4], *b"\x7fELF");
    let modules = image.ancestors().map(|above| above.join("lib")).find(|lib| lib.join("modules").is_dir());
    symlink(modules.expect("the kernel's modules"), folder.join("elf/lib")).unwrap();
    kernel
}

fn find(dir: &Path, wanted: fn(&str) -> bool) -> Option<PathBuf> {
    for entry in fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if let Some(found) = find(&path, wanted) {
                return Some(found);
            }
        } else if wanted(&entry.file_name().to_string_lossy()) {
            return Some(path);
        }
    }
    None
}
