//! Running `nft`, in the namespace that the calling thread is in.

use super::NetworkError;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Packets by the name of what counted them.
pub(super) type Counts = BTreeMap<String, u64>;

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
pub(super) fn counters() -> Result<Counts, NetworkError> {
    let listed = list(&["counters"])?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let counter_of = |object: &Value| {
        let counter = object.get("counter")?;
        Some((counter["name"].as_str()?.to_owned(), counter["packets"].as_u64()?))
    };
    Ok(objects.filter_map(counter_of).collect())
}

/// Of each set of links in the table `table` of family `inet`: its name, and the packets that it has counted by link.
pub(super) fn counted_by_link(table: &str) -> Result<Vec<(String, Counts)>, NetworkError> {
    let listed = list(&["table", "inet", table])?;
    let objects = listed["nftables"].as_array().into_iter().flatten();
    let element_of = |element: &Value| {
        let element = element.get("elem")?;
        Some((element["val"].as_str()?.to_owned(), element["counter"]["packets"].as_u64()?))
    };
    let set_of = |object: &Value| {
        let set = object.get("set").filter(|set| set["type"] == "iface_index")?;
        let elements = set["elem"].as_array().into_iter().flatten().filter_map(element_of);
        Some((set["name"].as_str()?.to_owned(), elements.collect()))
    };
    Ok(objects.filter_map(set_of).collect())
}

/// What `nft list` lists, as JSON.
fn list(what: &[&str]) -> Result<Value, NetworkError> {
    let output =
        command(&[&["-j", "list"][..], what].concat())?.output().map_err(|source| NetworkError::Nft { source })?;
    check(&output)?;
    serde_json::from_slice(&output.stdout).map_err(|error| NetworkError::Nft { source: error.into() })
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
