//! Running `nft`, in the namespace that the calling thread is in.

use super::NetworkError;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Applies `rules`: all or none.
pub(super) fn apply(rules: &str) -> Result<(), NetworkError> {
    let mut child = command(&["-f", "-"])?
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| NetworkError::Nft { source })?;
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(rules.as_bytes()),
        None => Ok(()), // There is one.
    };
    let output = child.wait_with_output().map_err(|source| NetworkError::Nft { source })?;
    check(&output)?;
    written.map_err(|source| NetworkError::Nft { source })
}

/// The packets that each named counter has seen.
pub(super) fn counters() -> Result<BTreeMap<String, u64>, NetworkError> {
    let output = command(&["-j", "list", "counters"])?.output().map_err(|source| NetworkError::Nft { source })?;
    check(&output)?;
    let listed: serde_json::Value =
        serde_json::from_slice(&output.stdout).map_err(|error| NetworkError::Nft { source: error.into() })?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let counter_of = |object: &serde_json::Value| {
        let counter = object.get("counter")?;
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    Ok(objects.filter_map(counter_of).collect())
}

/// The names of this host's tables of family `inet`.
pub(super) fn inet_tables() -> Result<Vec<String>, NetworkError> {
    let output = command(&["list", "tables", "inet"])?.output().map_err(|source| NetworkError::Nft { source })?;
    check(&output)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_prefix("table inet ")).map(str::to_owned).collect())
}

fn command(arguments: &[&str]) -> Result<Command, NetworkError> {
    let program = pando_sys::nft().ok_or(NetworkError::Lack(pando_sys::NetworkLack::Nft))?;
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
    Ok(command)
}

fn check(output: &Output) -> Result<(), NetworkError> {
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
            Err(NetworkError::Refused { said })
        }
    }
}
