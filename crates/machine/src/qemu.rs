//! QEMU's command line.

use crate::boot;
use crate::tools::{self, ToolError};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::Command;

/// An emulated host, as QEMU is told.
///
/// Always with one CPU: with two, multi-threaded emulation killed forked guests now and then (triple faults), and got
/// less work done.
pub(crate) struct Qemu {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) memory_mib: u32,
    /// Where the kernel's console goes.
    pub(crate) console: PathBuf,
    /// Where the job's standard output and standard error go.
    pub(crate) outputs: [PathBuf; 2],
    /// Folders that are writable in there, which the job's settings mount.
    pub(crate) writable: Vec<PathBuf>,
    /// A folder that is writable in there, with the tag `control`, which the job mounts.
    pub(crate) control: Option<PathBuf>,
    /// Raw disk images, `/dev/vda` and on.
    pub(crate) disks: Vec<PathBuf>,
    /// A TCP port of this computer that leads to one in there, the only road in; there is no road out.
    pub(crate) forward: Option<Forward>,
}

/// A TCP port on 127.0.0.1 that leads to one of the emulated host.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Forward {
    pub(crate) from_port: u16,
    pub(crate) to_port: u16,
}

/// The emulated host's address in QEMU's own network.
pub(crate) const ADDRESS: &str = "10.0.2.15";

/// Whether an emulated host ends with the thread that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// It does, however that thread ends.
    Starter,
    /// It stays.
    Own,
}

impl Qemu {
    /// The command that runs it.
    pub(crate) fn command(&self, lifetime: Lifetime) -> Result<Command, ToolError> {
        let qemu = tools::QEMU.find()?;
        let mut command = match (lifetime, tools::SETPRIV.find()) {
            (Lifetime::Starter, Ok(setpriv)) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL", "--"]).arg(qemu);
                command
            }
            // Without it QEMU outlives a starter that is killed, up to the end of its job.
            (Lifetime::Starter, Err(_)) | (Lifetime::Own, _) => Command::new(qemu),
        };
        command.args(self.arguments());
        Ok(command)
    }

    fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut option = |name: &str, parts: &[&OsStr]| {
            arguments.push(OsString::from(name));
            arguments.push(parts.iter().copied().collect::<OsString>());
        };
        let word = OsStr::new;
        option("-name", &[word("pando-machine")]);
        // Without the HPET the old timer's interrupt is free: see `boot/second.sh`.
        option("-machine", &[word("q35,hpet=off")]);
        option("-accel", &[word("tcg,thread=multi,tb-size=1024")]);
        // QEMU up to 7.2 emulates CMPXCHG16B with flags that were not up to date (`gen_cmpxchg16b` calls its helper without
        // `gen_update_cc_op`): where the flags were loaded whole before, by the end of an interrupt say, they become what was
        // compared last. An interrupt just behind it then saves an address for flags. Linux allocates memory with it.
        option("-cpu", &[word("EPYC,+svm,+npt,-cx16")]);
        option("-smp", &[word("1")]);
        option("-m", &[word(&self.memory_mib.to_string())]);
        option("-display", &[word("none")]);
        option("-monitor", &[word("none")]);
        option("-kernel", &[self.kernel.as_os_str()]);
        option("-initrd", &[&value(&self.initramfs)]);
        // Nothing hostile runs on this kernel that its mitigations would keep from this computer.
        // The TSC is trusted, because on a busy computer a comparison with a slow clock sometimes condemns it, and KVM
        // gives its guests a good clock only where the host uses the TSC.
        option("-append", &[word("console=ttyS0 quiet panic=-1 reboot=t mitigations=off tsc=reliable")]);
        option("-serial", &[word("file:"), &value(&self.console)]);
        option("-device", &[word("virtio-serial-pci")]);
        for (index, output) in self.outputs.iter().enumerate() {
            let n = index + 1;
            option("-chardev", &[word(&format!("file,id=output{n},append=on,path=")), &value(output)]);
            option("-device", &[word(&format!("virtserialport,nr={n},chardev=output{n},name=pando.output{n}"))]);
        }
        option("-virtfs", &[word("local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap")]);
        for (index, path) in self.writable.iter().enumerate() {
            let rest = format!(",mount_tag={},security_model=none,multidevs=remap", boot::tag(index));
            option("-virtfs", &[word("local,path="), &value(path), word(&rest)]);
        }
        if let Some(path) = &self.control {
            let rest = ",mount_tag=control,security_model=none,multidevs=remap";
            option("-virtfs", &[word("local,path="), &value(path), word(rest)]);
        }
        for (index, path) in self.disks.iter().enumerate() {
            let head = format!("if=none,id=disk{index},format=raw,cache=writeback,discard=unmap,file=");
            option("-drive", &[word(&head), &value(path)]);
            option("-device", &[word(&format!("virtio-blk-pci,drive=disk{index}"))]);
        }
        if let Some(Forward { from_port, to_port }) = self.forward {
            let network = format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{from_port}-{ADDRESS}:{to_port}");
            option("-netdev", &[word(&network)]);
            option("-device", &[word("virtio-net-pci,netdev=net,romfile=")]);
        }
        arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
        arguments
    }
}

/// A path as a value in a list of options, where a comma is written twice.
fn value(path: &std::path::Path) -> OsString {
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Qemu {
        Qemu {
            kernel: "/k".into(),
            initramfs: "/i".into(),
            memory_mib: 4096,
            console: "/c".into(),
            outputs: ["/1".into(), "/2".into()],
            writable: vec!["/a,b".into()],
            control: None,
            disks: Vec::new(),
            forward: None,
        }
    }

    fn line(qemu: &Qemu) -> String {
        qemu.arguments().join(OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn a_comma_in_a_path_does_not_begin_an_option() {
        assert!(line(&plain()).contains("-virtfs local,path=/a,,b,mount_tag=writable0,"));
    }

    #[test]
    fn the_root_of_this_computer_is_read_only_and_there_is_one_cpu() {
        let line = line(&plain());
        assert!(line.contains("path=/,mount_tag=root,security_model=none,readonly=on"));
        assert!(line.contains("-smp 1 "));
    }

    #[test]
    fn there_is_no_network_unless_a_port_is_forwarded_and_then_no_road_out() {
        assert!(!line(&plain()).contains("-netdev"));
        let qemu = Qemu { forward: Some(Forward { from_port: 1, to_port: 2 }), ..plain() };
        assert!(line(&qemu).contains("-netdev user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:1-10.0.2.15:2 "));
    }
}
