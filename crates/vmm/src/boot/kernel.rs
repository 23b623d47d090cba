//! Kernel, initramfs, command line and the zero page, in guest memory.

use super::acpi;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use pando_memory::{HIGH_START, LOW_END};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// Where the kernel finds its boot parameters.
pub(super) const ZERO_PAGE: u64 = 0x7000;
const COMMAND_LINE: u64 = 0x2_0000;
/// The kernel's own limit (COMMAND_LINE_SIZE of x86), the final zero included.
const COMMAND_LINE_LEN: usize = 2048;
/// Conventional memory ends here; then the BIOS area, which we use for tables.
const LOW_MEMORY_END: u64 = 0x9_fc00;
const HIGH_MEMORY: u64 = 0x10_0000;
/// From a `bzImage`'s load address to its 64-bit entry.
const BZIMAGE_ENTRY: u64 = 0x200;
/// `XLF_KERNEL_64`: the image has that entry.
const HAS_64_BIT_ENTRY: u16 = 1;
const PAGE: u64 = 4096;

/// Where a file says what it is.
const ELF_MAGIC_AT: u64 = 0;
const BZIMAGE_MAGIC_AT: u64 = 0x202;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// A boot loader without an assigned number.
const LOADER_UNDEFINED: u8 = 0xff;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");

/// Why a kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Neither an ELF executable nor a bzImage, or a broken one.
    #[error("the kernel is neither a 64-bit ELF executable nor a bzImage with a 64-bit entry")]
    NoKernel,
    /// Less of it is there than its header says.
    #[error("the kernel is cut off: {got} of its {wanted} bytes are there")]
    CutOff {
        /// The length of the file.
        got: u64,
        /// What the header says.
        wanted: u64,
    },
    /// It does not fit.
    #[error("{memory_mib} MiB of memory is too little for this kernel and its initramfs, which need {needed_mib} MiB")]
    TooLittleMemory {
        /// What the guest has.
        memory_mib: u64,
        /// What loading alone takes.
        needed_mib: u64,
    },
    /// The kernel would cut it off.
    #[error("the kernel command line has {0} bytes, over the limit of {limit}", limit = COMMAND_LINE_LEN - 1)]
    CommandLine(usize),
    /// The file cannot be read.
    #[error("cannot read the {0}")]
    Read(&'static str, #[source] io::Error),
    /// It cannot be written to where it belongs.
    #[error("cannot write boot tables to guest memory")]
    Tables(#[source] GuestMemoryError),
}

/// Loads everything and returns the address at which the kernel is entered.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    memory_bytes: u64,
    kernel: &mut File,
    initramfs: &mut File,
    command_line: &str,
) -> Result<u64, KernelError> {
    let mut params = boot_params::default();
    let (entry, kernel_end) = load_kernel(memory, memory_bytes, kernel, &mut params)?;
    load_initramfs(memory, memory_bytes, kernel_end, initramfs, &mut params)?;
    load_command_line(memory, command_line, &mut params)?;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.header = HEADER_MAGIC;
    params.acpi_rsdp_addr = acpi::RSDP_ADDRESS;
    describe_memory(memory_bytes, &mut params);
    memory.write_obj(params, GuestAddress(ZERO_PAGE)).map_err(KernelError::Tables)?;
    Ok(entry)
}

/// Returns the entry and the first address after everything that the kernel will use before it knows its memory.
fn load_kernel(
    memory: &GuestMemoryMmap,
    memory_bytes: u64,
    kernel: &mut File,
    params: &mut boot_params,
) -> Result<(u64, u64), KernelError> {
    let needed = end_of_kernel(kernel)?;
    if needed > memory_bytes.min(LOW_END) {
        return Err(too_little(memory_bytes, needed));
    }
    kernel.rewind().map_err(|error| KernelError::Read("kernel", error))?;
    let high_memory = Some(GuestAddress(HIGH_MEMORY));
    if let Ok(loaded) = BzImage::load(memory, None, kernel, high_memory) {
        params.hdr = loaded.setup_header.ok_or(KernelError::NoKernel)?;
        if params.hdr.xloadflags & HAS_64_BIT_ENTRY == 0 {
            return Err(KernelError::NoKernel);
        }
        let start = loaded.kernel_load.raw_value();
        let preferred = start.max(params.hdr.pref_address);
        let end = loaded.kernel_end.max(preferred.saturating_add(u64::from(params.hdr.init_size)));
        return Ok((start + BZIMAGE_ENTRY, end));
    }
    kernel.rewind().map_err(|error| KernelError::Read("kernel", error))?;
    let loaded = Elf::load(memory, None, kernel, high_memory).map_err(|_| KernelError::NoKernel)?;
    Ok((loaded.kernel_load.raw_value(), loaded.kernel_end))
}

/// Where in guest memory a kernel ends that is what it says to be.
fn end_of_kernel(kernel: &File) -> Result<u64, KernelError> {
    let len = kernel.metadata().map_err(|error| KernelError::Read("kernel", error))?.len();
    match bytes_at(kernel, ELF_MAGIC_AT) {
        Some(magic) if magic == *b"\x7fELF" => end_of_elf(kernel),
        _ if bytes_at(kernel, BZIMAGE_MAGIC_AT) == Some(*b"HdrS") => end_of_bzimage(kernel, len),
        _ => Err(KernelError::NoKernel),
    }
}

/// Documentation/arch/x86/boot.rst: `setup_sects` and `syssize`.
fn end_of_bzimage(kernel: &File, len: u64) -> Result<u64, KernelError> {
    let [setup_sectors] = bytes_at(kernel, 0x1f1).ok_or(KernelError::NoKernel)?;
    let paragraphs = u32::from_le_bytes(bytes_at(kernel, 0x1f4).ok_or(KernelError::NoKernel)?);
    // None means four, for kernels of old.
    let setup = (if setup_sectors == 0 { 4 } else { u64::from(setup_sectors) } + 1) * 512;
    let wanted = setup + u64::from(paragraphs) * 16;
    // The last paragraph need not be whole.
    if len + 15 < wanted {
        return Err(KernelError::CutOff { got: len, wanted });
    }
    Ok(HIGH_MEMORY + wanted - setup)
}

/// The end of the last segment of a 64-bit, little-endian executable for x86-64.
fn end_of_elf(kernel: &File) -> Result<u64, KernelError> {
    const EXECUTABLE: [u8; 4] = [2, 0, 62, 0];
    const LOADED: [u8; 4] = [1, 0, 0, 0];
    let is_ours = bytes_at(kernel, 4) == Some([2, 1]) && bytes_at(kernel, 16) == Some(EXECUTABLE);
    let (Some(table), Some(size), Some(count), true) =
        (bytes_at(kernel, 32), bytes_at(kernel, 54), bytes_at(kernel, 56), is_ours)
    else {
        return Err(KernelError::NoKernel);
    };
    let (table, size) = (u64::from_le_bytes(table), u64::from(u16::from_le_bytes(size)));
    let mut end = 0;
    for index in 0..u64::from(u16::from_le_bytes(count)) {
        let header = table.checked_add(index * size).ok_or(KernelError::NoKernel)?;
        let kind = bytes_at(kernel, header).ok_or(KernelError::NoKernel)?;
        if kind == LOADED {
            let field = |at| bytes_at(kernel, header.checked_add(at)?).map(u64::from_le_bytes);
            let (Some(start), Some(len)) = (field(24), field(40)) else { return Err(KernelError::NoKernel) };
            end = end.max(start.saturating_add(len));
        }
    }
    Ok(end)
}

fn bytes_at<const N: usize>(file: &File, at: u64) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
}

/// Puts the initramfs as high as it may lie, so that a decompressing kernel has all the room below.
fn load_initramfs(
    memory: &GuestMemoryMmap,
    memory_bytes: u64,
    kernel_end: u64,
    initramfs: &mut File,
    params: &mut boot_params,
) -> Result<(), KernelError> {
    let len = initramfs.seek(SeekFrom::End(0)).map_err(|error| KernelError::Read("initramfs", error))?;
    initramfs.rewind().map_err(|error| KernelError::Read("initramfs", error))?;
    let highest = match params.hdr.initrd_addr_max {
        0 => 0x37ff_ffff, // What kernels before the field had.
        max => u64::from(max),
    };
    let end = memory_bytes.min(LOW_END).min(highest + 1);
    let start = end.checked_sub(len).map(|start| start & !(PAGE - 1));
    let start = start
        .filter(|start| *start >= kernel_end)
        .ok_or_else(|| too_little(memory_bytes, kernel_end.saturating_add(len)))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), initramfs, len as usize)
        .map_err(|error| KernelError::Read("initramfs", io::Error::other(error)))?;
    params.hdr.ramdisk_image = start as u32; // Below 4 GiB, as `end` is.
    params.hdr.ramdisk_size = u32::try_from(len).map_err(|_| too_little(memory_bytes, len))?;
    Ok(())
}

fn load_command_line(
    memory: &GuestMemoryMmap,
    command_line: &str,
    params: &mut boot_params,
) -> Result<(), KernelError> {
    if command_line.len() >= COMMAND_LINE_LEN {
        return Err(KernelError::CommandLine(command_line.len()));
    }
    let mut bytes = command_line.as_bytes().to_vec();
    bytes.push(0);
    memory.write_slice(&bytes, GuestAddress(COMMAND_LINE)).map_err(KernelError::Tables)?;
    params.hdr.cmd_line_ptr = COMMAND_LINE as u32;
    params.hdr.cmdline_size = command_line.len() as u32;
    Ok(())
}

fn describe_memory(memory_bytes: u64, params: &mut boot_params) {
    let low = memory_bytes.min(LOW_END);
    let ranges = [
        (0, LOW_MEMORY_END, E820_RAM),
        (LOW_MEMORY_END, HIGH_MEMORY - LOW_MEMORY_END, E820_RESERVED),
        (HIGH_MEMORY, low - HIGH_MEMORY, E820_RAM),
        (HIGH_START, memory_bytes - low, E820_RAM),
    ];
    let mut count = 0;
    for (addr, size, type_) in ranges.into_iter().filter(|range| range.1 > 0) {
        params.e820_table[count] = boot_e820_entry { addr, size, r#type: type_ };
        count += 1;
    }
    params.e820_entries = count as u8;
}

fn too_little(memory_bytes: u64, needed: u64) -> KernelError {
    KernelError::TooLittleMemory { memory_mib: memory_bytes >> 20, needed_mib: needed.div_ceil(1 << 20) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const MEMORY: u64 = 128 << 20;

    /// Why a kernel of these bytes is refused.
    fn refusal(bytes: &[u8]) -> String {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(bytes).unwrap();
        let memory = pando_memory::allocate(MEMORY).unwrap();
        let mut initramfs = tempfile::tempfile().unwrap();
        load(&memory, MEMORY, &mut kernel, &mut initramfs, "").unwrap_err().to_string()
    }

    fn elf() -> Vec<u8> {
        pando_bench::executable(&[0xf4], &[])
    }

    /// As far as anybody looks before it is loaded: one sector of setup beside the first, and `paragraphs` of kernel.
    fn bzimage(paragraphs: u32) -> Vec<u8> {
        let mut file = vec![0; 1024];
        file[0x1f1] = 1;
        file[0x1f4..0x1f8].copy_from_slice(&paragraphs.to_le_bytes());
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file
    }

    #[test]
    fn a_file_that_is_no_kernel_is_refused_as_that() {
        const NO_KERNEL: &str = "the kernel is neither a 64-bit ELF executable nor a bzImage with a 64-bit entry";
        // This program can be loaded anywhere, as those of /bin.
        assert_eq!(refusal(&std::fs::read("/proc/self/exe").unwrap()[..64 << 10]), NO_KERNEL);
        for (at, other) in [(4, 1), (5, 2), (16, 3), (18, 183)] {
            let mut spoilt = elf();
            spoilt[at] = other; // 32 bits, big-endian, position-independent, arm64.
            assert_eq!(refusal(&spoilt), NO_KERNEL, "{at}");
        }
        assert_eq!(refusal(&elf()[..100]), NO_KERNEL);
        assert_eq!(refusal(b""), NO_KERNEL);
        assert_eq!(refusal(&[b'a'; 4096]), NO_KERNEL);
    }

    #[test]
    fn a_kernel_that_is_cut_off_is_refused_as_that() {
        assert_eq!(refusal(&bzimage(100)), "the kernel is cut off: 1024 of its 2624 bytes are there");
    }

    #[test]
    fn a_kernel_that_needs_more_memory_is_told_how_much() {
        let mut large = elf();
        large[64 + 40..64 + 48].copy_from_slice(&(200_u64 << 20).to_le_bytes());
        let (needed, wanted) = ("128 MiB of memory is too little for this kernel and its initramfs, which need", 202);
        assert_eq!(refusal(&large), format!("{needed} {wanted} MiB"));
        let mut large = bzimage(16 << 20);
        large.resize(1024 + (256 << 20), 0);
        assert_eq!(refusal(&large), format!("{needed} 257 MiB"));
    }
}
