//! What every command is told.

use clap::{Args, ValueEnum};

/// Options that every command has.
#[derive(Debug, Clone, Args)]
pub(crate) struct Context {
    /// How to print results: a table, or the API's body as JSON.
    #[arg(short = 'o', long = "output", value_name = "FORMAT", global = true, default_value = "table")]
    pub(crate) output: Format,
    /// The same as `-o json`.
    #[arg(long, global = true, conflicts_with = "output")]
    pub(crate) json: bool,
}

/// A way to print results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    // For people.
    Table,
    // For programs.
    Json,
}

impl Context {
    /// Whether results are printed as JSON, however that was said.
    pub(crate) fn json(&self) -> bool {
        self.json || self.output == Format::Json
    }
}
