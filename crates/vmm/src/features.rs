//! The CPU features that matter to a guest, by the names of `/proc/cpuinfo`: it goes on only where all that it was shown
//! are there.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

#[derive(Clone, Copy)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}
use Register::{Eax, Ebx, Ecx, Edx};

/// Bits of a register that name features.
type Bits = &'static [(u32, &'static str)];

/// The features that instructions, page tables or saved registers depend on: leaf, index, register, and bits by name.
const FEATURES: &[(u32, u32, Register, Bits)] = &[
    (
        1,
        0,
        Ecx,
        &[
            (0, "pni"),
            (1, "pclmulqdq"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4_1"),
            (20, "sse4_2"),
            (22, "movbe"),
            (23, "popcnt"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
        ],
    ),
    (1, 0, Edx, &[(19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2")]),
    (
        7,
        0,
        Ebx,
        &[
            (0, "fsgsbase"),
            (3, "bmi1"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha_ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    ),
    (
        7,
        0,
        Ecx,
        &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512_vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512_vnni"),
            (12, "avx512_bitalg"),
            (14, "avx512_vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
        ],
    ),
    (7, 0, Edx, &[(4, "fsrm"), (22, "amx_bf16"), (23, "avx512_fp16"), (24, "amx_tile"), (25, "amx_int8")]),
    (7, 1, Eax, &[(4, "avx_vnni"), (5, "avx512_bf16")]),
    (0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")]),
    (0x8000_0001, 0, Ecx, &[(0, "lahf_lm"), (5, "abm"), (6, "sse4a"), (7, "misalignsse"), (8, "3dnowprefetch")]),
    (0x8000_0001, 0, Edx, &[(11, "syscall"), (20, "nx"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm")]),
];

/// Those that `cpuid` shows.
pub(crate) fn of(cpuid: &CpuId) -> Vec<&'static str> {
    let value = |leaf, index, register| {
        let is_it = |entry: &&kvm_cpuid_entry2| entry.function == leaf && entry.index == index;
        cpuid.as_slice().iter().find(is_it).map_or(0, |entry| match register {
            Eax => entry.eax,
            Ebx => entry.ebx,
            Ecx => entry.ecx,
            Edx => entry.edx,
        })
    };
    let shown = FEATURES.iter().flat_map(|&(leaf, index, register, bits)| {
        let value = value(leaf, index, register);
        bits.iter().filter(move |(bit, _)| value >> bit & 1 == 1).map(|(_, name)| *name)
    });
    shown.collect()
}

/// Those that `guest` was shown and `host` lacks.
pub(crate) fn missing(guest: &CpuId, host: &CpuId) -> Vec<&'static str> {
    let host = of(host);
    of(guest).into_iter().filter(|feature| !host.contains(feature)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpuid(avx2: bool) -> CpuId {
        let leaf1 = kvm_cpuid_entry2 { function: 1, ecx: 1 << 28 | 1 << 20, ..Default::default() };
        let leaf7 = kvm_cpuid_entry2 { function: 7, ebx: u32::from(avx2) << 5, ..Default::default() };
        CpuId::from_entries(&[leaf1, leaf7]).unwrap()
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        assert_eq!(of(&cpuid(true)), ["sse4_2", "avx", "avx2"]);
        assert_eq!(missing(&cpuid(true), &cpuid(false)), ["avx2"]);
        assert!(missing(&cpuid(false), &cpuid(true)).is_empty(), "more than was shown does no harm");
    }
}
