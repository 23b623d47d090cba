//! Reading numbers and texts, one after the other, and writing them.

use super::FormatError;

/// What is left to be read.
pub(super) struct Fields<'b>(pub(super) &'b [u8]);

impl<'b> Fields<'b> {
    pub(super) fn bytes(&mut self, len: usize) -> Result<&'b [u8], FormatError> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(FormatError::Length)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(FormatError::Length)?;
        self.0 = rest;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    /// A count of things that take at least `each` bytes, so that no more room is made for them than the file has.
    pub(super) fn count(&mut self, each: usize) -> Result<usize, FormatError> {
        let count = self.u32()? as usize;
        let fits = count.checked_mul(each).is_some_and(|len| len <= self.0.len());
        if fits { Ok(count) } else { Err(FormatError::Length) }
    }

    /// Bytes behind their length.
    pub(super) fn blob(&mut self) -> Result<&'b [u8], FormatError> {
        let len = self.count(1)?;
        self.bytes(len)
    }

    pub(super) fn text(&mut self, what: &'static str) -> Result<String, FormatError> {
        let text = std::str::from_utf8(self.blob()?).map_err(|_| FormatError::Field(what))?;
        Ok(text.to_owned())
    }

    /// Nothing may follow.
    pub(super) fn end(self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Length) }
    }
}

/// Appends bytes behind their length. `None` where that does not fit in 32 bits.
pub(super) fn push_blob(file: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    file.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
    file.extend_from_slice(bytes);
    Some(())
}
