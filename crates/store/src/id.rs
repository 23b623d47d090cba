//! Names that are made from what they name: BLAKE3 of the content.

use std::fmt;
use std::str::FromStr;

/// The length of every id, in bytes.
pub(crate) const ID_BYTES: usize = 32;

/// A name that is not the 64 lower-case hexadecimal digits of an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an id is 64 lower-case hexadecimal digits")]
pub struct IdError;

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; ID_BYTES]);

        impl $name {
            /// The id of these bytes.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// A chunk: pages that are stored together. Of the uncompressed bytes.
    ChunkId
    /// A pack: a file of chunks. Of the whole file.
    PackId
    /// A manifest: which chunk each page of a layer is in. Of the whole file.
    ManifestId
}

fn parse(text: &str) -> Result<[u8; ID_BYTES], IdError> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(IdError),
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != ID_BYTES || !rest.is_empty() {
        return Err(IdError);
    }
    let mut id = [0; ID_BYTES];
    for (byte, [high, low]) in id.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = ChunkId::of(b"a page");
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        for wrong in ["", "00", &text[1..], &format!("{text}0"), &text.to_uppercase(), "é"] {
            assert_eq!(wrong.parse::<ChunkId>(), Err(IdError), "{wrong}");
        }
    }
}
