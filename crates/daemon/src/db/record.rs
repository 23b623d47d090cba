//! A VM, as its row says.

use super::DbError;
use super::vms::json;
use pando_wire::api::{Network, NetworkMode, State, Vm};
use sqlx::FromRow;
use std::collections::BTreeMap;

/// What the daemon knows of a VM.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: State,
    pub(crate) ending: Option<String>,
    pub(crate) pid: Option<u32>,
    pub(crate) parent: Option<String>,
    /// Forks since the boot along this line.
    pub(crate) generation: u64,
    pub(crate) image: String,
    pub(crate) cpus: u8,
    pub(crate) memory_bytes: u64,
    pub(crate) command: Vec<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) kernel: Option<String>,
    pub(crate) created_ms: i64,
    pub(crate) owner: String,
    pub(crate) epoch: i64,
    /// The layer that it writes, if that is not called like the VM: it has slept in a build that stored its disk.
    pub(crate) layer: Option<String>,
    /// What the store calls the VM as it sleeps. In one that runs: as it is to sleep.
    pub(crate) sleep: Option<String>,
    /// What the store has it from, once it has run since. The same as `sleep` until its agent has answered.
    pub(crate) woken: Option<String>,
    /// After how long without use it hibernates by itself: never when 0, as the settings say when `None`.
    pub(crate) idle_timeout_ms: Option<u64>,
    /// What its network reaches.
    pub(crate) network: Network,
}

impl Record {
    /// The layer that it writes.
    pub(crate) fn layer(&self) -> &str {
        self.layer.as_deref().unwrap_or(&self.id)
    }

    /// Whether it is being woken, and has not run since it slept: what the store has of it is still what it is.
    pub(crate) fn is_to_wake(&self) -> bool {
        self.state == State::Starting && self.sleep.is_some() && self.sleep != self.woken
    }

    /// What the store may have of it.
    pub(crate) fn stored(&self) -> impl Iterator<Item = &String> {
        self.sleep.iter().chain(&self.woken)
    }

    /// As the API shows it.
    pub(crate) fn into_api(self) -> Vm {
        Vm {
            id: self.id,
            name: self.name,
            state: self.state,
            ending: self.ending,
            parent: self.parent,
            image: self.image,
            cpus: self.cpus,
            memory_bytes: self.memory_bytes,
            command: self.command,
            env: self.env,
            pid: self.pid,
            created_ms: self.created_ms,
            owner: self.owner,
            epoch: self.epoch,
            usage: None,
            idle_timeout_ms: self.idle_timeout_ms,
            sleepless: None,
            network: self.network,
            no_network: None,
            traffic: None,
            published: Vec::new(),
        }
    }

    /// Its id as `/etc/machine-id` wants it.
    pub(crate) fn machine_id(&self) -> String {
        self.id.replace('-', "")
    }
}

/// How a state is called, in the database and to people.
pub(crate) fn state_name(state: State) -> &'static str {
    match state {
        State::Starting => "starting",
        State::Running => "running",
        State::Paused => "paused",
        State::Stopped => "stopped",
        State::Hibernated => "hibernated",
    }
}

/// A network as its column says: nothing where there is none.
pub(super) fn parse_network(column: Option<&str>) -> serde_json::Result<Network> {
    column.map_or_else(|| Ok(Network::default()), serde_json::from_str)
}

/// A network for its column.
pub(super) fn show_network(network: &Network) -> Option<String> {
    (network.mode != NetworkMode::None).then(|| json(network))
}

/// A row, before anyone believes it.
#[derive(Debug, FromRow)]
pub(super) struct Row {
    id: String,
    name: String,
    state: String,
    ending: Option<String>,
    pid: Option<i64>,
    parent: Option<String>,
    generation: i64,
    image: String,
    cpus: i64,
    memory_bytes: i64,
    command: String,
    env: String,
    cwd: Option<String>,
    user: Option<String>,
    kernel: Option<String>,
    created_ms: i64,
    owner: String,
    epoch: i64,
    layer: Option<String>,
    sleep: Option<String>,
    woken: Option<String>,
    idle_timeout_ms: Option<i64>,
    network: Option<String>,
}

impl TryFrom<Row> for Record {
    type Error = DbError;

    fn try_from(row: Row) -> Result<Self, DbError> {
        let wrong = |what: String| DbError::Row { id: row.id.clone(), what };
        let state = [State::Starting, State::Running, State::Paused, State::Stopped, State::Hibernated]
            .into_iter()
            .find(|&state| state_name(state) == row.state)
            .ok_or_else(|| wrong(format!("state {:?}", row.state)))?;
        let pid = row.pid.map(u32::try_from).transpose().map_err(|_| wrong(format!("pid {:?}", row.pid)))?;
        let generation = u64::try_from(row.generation).map_err(|_| wrong(format!("generation {}", row.generation)))?;
        let cpus = u8::try_from(row.cpus).map_err(|_| wrong(format!("{} CPUs", row.cpus)))?;
        let memory_bytes =
            u64::try_from(row.memory_bytes).map_err(|_| wrong(format!("{} bytes of RAM", row.memory_bytes)))?;
        let idle_timeout_ms = row.idle_timeout_ms.map(u64::try_from).transpose();
        let idle_timeout_ms = idle_timeout_ms.map_err(|_| wrong(format!("idle timeout {:?}", row.idle_timeout_ms)))?;
        let command = serde_json::from_str(&row.command).map_err(|_| wrong(format!("command {}", row.command)))?;
        let env = serde_json::from_str(&row.env).map_err(|_| wrong("an environment that is no JSON".to_owned()))?;
        let network = parse_network(row.network.as_deref()).map_err(|_| wrong(format!("network {:?}", row.network)))?;
        Ok(Self {
            id: row.id,
            name: row.name,
            state,
            ending: row.ending,
            pid,
            parent: row.parent,
            generation,
            image: row.image,
            cpus,
            memory_bytes,
            command,
            env,
            cwd: row.cwd,
            user: row.user,
            kernel: row.kernel,
            created_ms: row.created_ms,
            owner: row.owner,
            epoch: row.epoch,
            layer: row.layer,
            sleep: row.sleep,
            woken: row.woken,
            idle_timeout_ms,
            network,
        })
    }
}
