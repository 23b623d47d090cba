//! How the daemon is set.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A setting of a daemon: it holds from now on, also for the daemons after this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// What it is.
    pub value: String,
    /// What it is when nobody sets it.
    pub default: String,
    /// What it is for.
    pub about: String,
}

/// What a setting is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingRequest {
    /// As [`Setting::value`].
    pub value: String,
}
