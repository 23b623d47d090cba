//! Which pages of a layer are wanted first: a hint, which may be replaced and may be lost.

use super::envelope::{self, FileKind, FormatError, HEADER_BYTES};
use super::fields::Fields;
use super::manifest::MAX_PAGES;
use crate::id::{ID_BYTES, ManifestId};
use std::ops::Range;

const COUNT_AT: usize = HEADER_BYTES + ID_BYTES;
const RUNS_AT: usize = COUNT_AT + size_of::<u32>();
const _: () = assert!(RUNS_AT == 68, "docs/snapshot-format.md says 68");
const RUN_BYTES: usize = 2 * size_of::<u64>();

/// The whole file. `None` where there are more runs than 32 bits can count.
pub(crate) fn write_working_set(layer: ManifestId, runs: &[Range<u64>]) -> Option<Vec<u8>> {
    let mut file = vec![0; HEADER_BYTES];
    file.extend_from_slice(&layer.0);
    file.extend_from_slice(&u32::try_from(runs.len()).ok()?.to_le_bytes());
    for run in runs {
        file.extend_from_slice(&run.start.to_le_bytes());
        file.extend_from_slice(&run.end.to_le_bytes());
    }
    Some(envelope::seal(FileKind::WorkingSet, file))
}

/// Reads a whole file, of the layer that it is named after.
pub(crate) fn read_working_set(layer: ManifestId, file: &[u8]) -> Result<Vec<Range<u64>>, FormatError> {
    let mut fields = Fields(envelope::unseal(FileKind::WorkingSet, file)?);
    if fields.array()? != layer.0 {
        return Err(FormatError::Name);
    }
    let count = fields.count(RUN_BYTES)?;
    let mut runs = Vec::with_capacity(count);
    for _ in 0..count {
        let run = fields.u64()?..fields.u64()?;
        if run.is_empty() || run.end > MAX_PAGES {
            return Err(FormatError::Field("run"));
        }
        runs.push(run);
    }
    fields.end()?;
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_reads_back_equal_and_whatever_is_cut_or_flipped_is_refused() {
        let (layer, runs) = (ManifestId([7; 32]), vec![40..44, 0..1, 100..MAX_PAGES]);
        let good = write_working_set(layer, &runs).unwrap();
        assert_eq!(read_working_set(layer, &good), Ok(runs));
        assert_eq!(read_working_set(ManifestId([8; 32]), &good), Err(FormatError::Name));
        (0..good.len()).for_each(|len| assert!(read_working_set(layer, &good[..len]).is_err(), "cut to {len}"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read_working_set(layer, &bad).is_err(), "bit {bit}");
        }
        for run in [5..5, Range { start: 5, end: 4 }, 0..MAX_PAGES + 1] {
            let bad = write_working_set(layer, &[run]).unwrap();
            assert_eq!(read_working_set(layer, &bad), Err(FormatError::Field("run")));
        }
    }
}
