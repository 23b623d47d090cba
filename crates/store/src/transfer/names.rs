//! How the files of a store are called on their way: as in its directory.

use crate::format::check_name;
use crate::id::{ManifestId, PackId};
use std::fmt;
use std::str::FromStr;

/// The mark of a store, a pack, a manifest, a checkpoint or a working set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    Mark,
    Pack(PackId),
    Manifest(ManifestId),
    Checkpoint(String),
    WorkingSet(ManifestId),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark => f.write_str("store"),
            Self::Pack(id) => write!(f, "packs/{id}"),
            Self::Manifest(id) => write!(f, "manifests/{id}"),
            Self::WorkingSet(id) => write!(f, "working-sets/{id}"),
            Self::Checkpoint(name) => write!(f, "checkpoints/{name}"),
        }
    }
}

/// A name that is none of these.
pub(crate) struct Unknown;

impl FromStr for Name {
    type Err = Unknown;

    fn from_str(text: &str) -> Result<Self, Unknown> {
        match text.split_once('/') {
            None if text == "store" => Ok(Self::Mark),
            Some(("packs", id)) => id.parse().map(Self::Pack).map_err(|_| Unknown),
            Some(("manifests", id)) => id.parse().map(Self::Manifest).map_err(|_| Unknown),
            Some(("working-sets", id)) => id.parse().map(Self::WorkingSet).map_err(|_| Unknown),
            Some(("checkpoints", name)) => {
                check_name(name).map_err(|_| Unknown)?;
                Ok(Self::Checkpoint(name.to_owned()))
            }
            _ => Err(Unknown),
        }
    }
}
