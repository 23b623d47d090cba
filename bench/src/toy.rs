//! The toy guest: it touches its memory, then walks over some of it for ever, lap by lap.
//!
//! A lap writes its number to every page, and before that checks that the page still holds the number of the lap before,
//! which it keeps in a register. A register of one instant over memory of another would be seen at the next page. At the
//! end of a lap it writes the number's low seven bits to the serial port, so the console is a sequence without gaps,
//! and an access that is repeated or lost shows as well.

use std::ops::Range;

/// The byte that says: all memory is touched, the laps begin.
pub const READY: u8 = 0x80;
/// The byte that says: a page did not hold what it should.
pub const BROKEN: u8 = 0xff;

const LOAD_ADDRESS: u64 = 0x20_0000;
/// Where the code finds its ranges.
const PARAMETERS: u64 = LOAD_ADDRESS + 0x1000;

/// ```text
///        mov rbx, PARAMETERS
///        mov rdi, [rbx]      ; mov rcx, [rbx+8]  ; call touch
///        mov rdi, [rbx+16]   ; mov rcx, [rbx+24] ; call touch
///        mov dx, 0x3f8       ; mov al, READY     ; out dx, al
///        xor r8d, r8d
/// lap:   mov r9, r8          ; inc r8
///        mov rdi, [rbx+32]   ; mov rcx, [rbx+40]
/// page:  cmp [rdi], r9       ; jne broken
///        mov [rdi], r8
///        add rdi, 4096       ; cmp rdi, rcx      ; jb page
///        mov eax, r8d        ; and al, 0x7f      ; out dx, al
///        jmp lap
/// broken: mov al, BROKEN     ; out dx, al        ; hlt
/// touch: cmp rdi, rcx        ; jae done
///        mov byte ptr [rdi+8], 1
///        add rdi, 4096       ; jmp touch
/// done:  ret
/// ```
const CODE: [u8; 107] = [
    0x48, 0xc7, 0xc3, 0x00, 0x10, 0x20, 0x00, 0x48, 0x8b, 0x3b, 0x48, 0x8b, 0x4b, 0x08, 0xe8, 0x45, 0x00, 0x00, 0x00,
    0x48, 0x8b, 0x7b, 0x10, 0x48, 0x8b, 0x4b, 0x18, 0xe8, 0x38, 0x00, 0x00, 0x00, 0x66, 0xba, 0xf8, 0x03, 0xb0, 0x80,
    0xee, 0x45, 0x31, 0xc0, 0x4d, 0x89, 0xc1, 0x49, 0xff, 0xc0, 0x48, 0x8b, 0x7b, 0x20, 0x48, 0x8b, 0x4b, 0x28, 0x4c,
    0x39, 0x0f, 0x75, 0x17, 0x4c, 0x89, 0x07, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0x48, 0x39, 0xcf, 0x72, 0xec,
    0x44, 0x89, 0xc0, 0x24, 0x7f, 0xee, 0xeb, 0xd6, 0xb0, 0xff, 0xee, 0xf4, 0x48, 0x39, 0xcf, 0x73, 0x0d, 0xc6, 0x47,
    0x08, 0x01, 0x48, 0x81, 0xc7, 0x00, 0x10, 0x00, 0x00, 0xeb, 0xee, 0xc3,
];

/// What the guest does with its memory, in guest-physical addresses, which all lie below 8 GiB.
#[derive(Debug, Clone)]
pub struct Toy {
    /// Touched once, a page at a time, before the laps: the RAM around the MMIO hole.
    pub touched: [Range<u64>; 2],
    /// Written in every lap, a page at a time. Not empty.
    pub walked: Range<u64>,
}

impl Toy {
    /// Where a guest may begin to touch and to walk: above its code.
    pub const FREE_FROM: u64 = 4 << 20;

    /// A guest that touches nothing and walks over `pages` pages.
    pub fn walking(pages: u64) -> Self {
        let walked = Self::FREE_FROM..Self::FREE_FROM + pages * 4096;
        Self { touched: [0..0, 0..0], walked }
    }

    /// A guest that touches all of `memory_bytes` and walks over `walked_bytes` of it.
    pub fn touching(memory_bytes: u64, walked_bytes: u64) -> Self {
        const HOLE: u64 = 3 << 30;
        const HIGH: u64 = 4 << 30;
        let high = memory_bytes.saturating_sub(HOLE);
        let touched = [Self::FREE_FROM..memory_bytes.min(HOLE), HIGH..HIGH + high];
        Self { touched, walked: Self::FREE_FROM..Self::FREE_FROM + walked_bytes }
    }

    /// The guest as an ELF executable.
    pub fn elf(&self) -> Vec<u8> {
        let ranges = [&self.touched[0], &self.touched[1], &self.walked];
        executable(&CODE, &ranges.map(|range| [range.start, range.end]).concat())
    }
}

/// An ELF executable of `code`, which begins at its first byte, and finds its parameters a page behind that.
pub fn executable(code: &[u8], parameters: &[u64]) -> Vec<u8> {
    const HEADERS_LEN: usize = 64 + 56;
    let parameters_at = (PARAMETERS - LOAD_ADDRESS) as usize;
    let image_len = parameters_at + parameters.len() * 8;
    let mut file = vec![0; HEADERS_LEN + image_len];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    // The ELF header: 64 bits, little-endian, executable, x86-64, one program header behind it.
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &LOAD_ADDRESS.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1]);
    // The program header: loaded, readable, writable, executable.
    put(64, &[1, 0, 0, 0, 7]);
    let addresses = [HEADERS_LEN as u64, LOAD_ADDRESS, LOAD_ADDRESS, image_len as u64, image_len as u64, 4096];
    for (index, value) in addresses.into_iter().enumerate() {
        put(72 + index * 8, &value.to_le_bytes());
    }
    put(HEADERS_LEN, code);
    for (index, value) in parameters.iter().enumerate() {
        put(HEADERS_LEN + parameters_at + index * 8, &value.to_le_bytes());
    }
    file
}
