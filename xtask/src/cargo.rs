//! Cargo, and what it built.

use crate::TaskError;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program that cargo built.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Of its target: `pando`, `boot`.
    pub(crate) name: String,
    /// Of its target: `bin`, `test`.
    pub(crate) kind: String,
    /// Where it is.
    pub(crate) path: PathBuf,
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where builds go.
pub(crate) fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Builds with these arguments, and tells which programs there are now.
pub(crate) fn build(args: &[&str], variables: &[(&str, &str)]) -> Result<Vec<Program>, TaskError> {
    let what = format!("cargo {}", args.join(" "));
    eprintln!("$ {what}");
    let mut command = cargo();
    command.args(args).args(["--message-format", "json-render-diagnostics"]).current_dir(root());
    command.envs(variables.iter().copied()).stderr(Stdio::inherit());
    let output = command.output().map_err(|source| TaskError::Start { program: "cargo".into(), source })?;
    if !output.status.success() {
        return Err(TaskError::Failed { what, status: output.status });
    }
    let lines = output.stdout.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let messages: Result<Vec<Value>, _> = lines.map(serde_json::from_slice).collect();
    let messages = messages.map_err(|_| TaskError::Output(what))?;
    Ok(messages.iter().filter_map(program).collect())
}

fn program(message: &Value) -> Option<Program> {
    let path = PathBuf::from(message["executable"].as_str()?);
    let target = &message["target"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    Some(Program { name: text(&target["name"])?, kind: text(&target["kind"][0])?, path })
}
