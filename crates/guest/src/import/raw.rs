//! An ext4 image is taken as it is, except that zeroes become holes.

use std::io::Read;

use crate::import::input::Input;
use crate::import::store::{BLOCK_BYTES, NewImage};
use crate::import::{ImportError, write_error};

/// Copies `input` to its end. `file_system_bytes` is how much there must be.
pub(super) fn copy(input: &mut Input<'_>, file_system_bytes: u64, image: &mut NewImage) -> Result<(), ImportError> {
    // A whole number of blocks, so that reads and holes stay aligned.
    let mut buffer = vec![0; 256 * BLOCK_BYTES];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => (),
                Err(error) => return Err(input.explain(error)),
            }
        }
        if filled == 0 {
            break;
        }
        image.write_sparse(at, &buffer[..filled]).map_err(|source| write_error(image.path(), source))?;
        at += filled as u64;
    }
    if at < file_system_bytes {
        return Err(ImportError::Truncated);
    }
    image.set_len(at)
}
