//! Kernel, initramfs, command line and the zero page, in guest memory.

use super::acpi;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use pando_memory::{HIGH_START, LOW_END};
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
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
    let file_len = kernel.seek(SeekFrom::End(0)).map_err(|error| KernelError::Read("kernel", error))?;
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
    match Elf::load(memory, None, kernel, high_memory) {
        Ok(loaded) => Ok((loaded.kernel_load.raw_value(), loaded.kernel_end)),
        Err(_) if looks_like_a_kernel(kernel) => Err(too_little(memory_bytes, HIGH_MEMORY + file_len)),
        Err(_) => Err(KernelError::NoKernel),
    }
}

/// Whether the file has the marks of a kernel, so that a failure to load it must be for want of room.
fn looks_like_a_kernel(kernel: &mut File) -> bool {
    use std::os::unix::fs::FileExt;
    let (mut elf, mut header) = ([0; 4], [0; 4]);
    let elf = kernel.read_exact_at(&mut elf, 0).is_ok() && elf == *b"\x7fELF";
    elf || kernel.read_exact_at(&mut header, 0x202).is_ok() && header == *b"HdrS"
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
