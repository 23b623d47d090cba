//! A program in a VM.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// A program to run in a VM, for callers that need neither a terminal nor a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// The program, looked up in `PATH`, and its arguments.
    pub argv: Vec<String>,
    /// Added to the environment of the VM.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; `/` when absent.
    #[serde(default)]
    pub cwd: Option<String>,
    /// A name in `/etc/passwd` or `uid[:gid]`; root when absent.
    #[serde(default)]
    pub user: Option<String>,
    /// What its standard input holds; nothing when absent.
    #[serde(default)]
    pub stdin: Option<String>,
    /// It is killed after so many milliseconds; 60 000 when absent.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
}

/// How a program that was run in a VM went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecReport {
    /// Its exit status; 128 and the signal's number when a signal ended it, as shells say it.
    pub exit: i32,
    /// What it wrote to standard output; what is not UTF-8 is replaced.
    pub stdout: String,
    /// What it wrote to standard error, likewise.
    pub stderr: String,
    /// Whether it wrote more than 8 MiB, of which the rest is not here.
    pub truncated: bool,
}
