//! Folders and files on their way in and out, as tar archives.

mod pack; // from this computer
mod unpack; // from a guest, which is not trusted

pub(crate) use pack::{Owners, PackError, base_name, stream, total_bytes};
pub(crate) use unpack::{UnpackError, unpack};
