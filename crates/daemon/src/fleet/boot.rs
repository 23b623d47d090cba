//! From nothing, or from a stopped VM's disk, to an agent that answers.

use super::error::{FleetError, cannot};
use super::files::{self, Own, Shared, descriptors, open_kvm};
use super::{Fleet, blocking, guest, launch, logs, names, network, room, wrong_state};
use crate::agent::{Agent, AgentError};
use crate::db::{Change, Insert, Record, now_ms};
use crate::monitor::{Monitor, MonitorError};
use crate::settings;
use crate::supervisor::{DIED, Process, spawn};
use pando_disk::{BLOCK_BYTES, MAX_DISK_BYTES, MAX_LAYERS};
use pando_wire::agent::Request as AgentRequest;
use pando_wire::api::{RunRequest, State, Vm};
use pando_wire::control::{Boot, Listener, Origin, PAGES_CONNECTIONS, Request, Start};
use rustix::rand::{GetRandomFlags, getrandom};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long a guest may take from its start until its agent answers, also from a checkpoint. In an emulated host on
/// a busy computer 120 s were not always enough, and a guest that does not come up is mostly noticed by its end, not by this.
pub(super) const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// RAM comes in units of a huge page.
const MEMORY_UNIT: u64 = 2 << 20;
const MIN_MEMORY: u64 = 128 << 20;
const MAX_MEMORY: u64 = 64 << 30;
const MAX_CPUS: u8 = 32;
/// Descriptors in one packet to a monitor (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;
/// The most inherited layers that a stopped VM can be started with: each is two descriptors, and eight are something
/// else.
const MAX_RECOVERED_LAYERS: usize = (MAX_DESCRIPTORS - 8) / 2;
/// One that sleeps has connections to a page server instead of a kernel and an initramfs.
const _: () = assert!(6 + PAGES_CONNECTIONS + 2 * (MAX_LAYERS - 1) <= MAX_DESCRIPTORS, "every VM that sleeps can wake");

impl Fleet {
    /// Creates a VM, boots it and waits until its agent answers. Either there is a running VM then, or nothing.
    pub(crate) async fn run(&self, request: RunRequest) -> Result<Vm, FleetError> {
        let request = checked(request)?;
        let kvm = self.0.kvm.clone();
        blocking(move || open_kvm(&kvm)).await?;
        let named = request.name.as_deref();
        room::check(
            &self.0.meminfo,
            || format!("a VM{}", named.map(|name| format!(" called {name}")).unwrap_or_default()),
            room::PER_BOOT,
        )?;
        let Some(image) = self.0.db.image(&request.image).await? else {
            return Err(FleetError::NoSuchImage(request.image));
        };
        let disk_bytes = disk_bytes(request.disk_bytes, image.size_bytes)?;
        let (network, no_network) = self.choose_network(request.network).await?;

        // So that nothing is made for a VM whose ports another has.
        let ports = self.take_ports(&request.publish).await?;

        let id = Uuid::now_v7();
        // Before anybody can see it.
        let turn = self.0.turns.vm(&id.to_string()).await;
        let chosen = request.name.clone();
        let record = Record {
            id: id.to_string(),
            name: String::new(), // Known once it is known to be free.
            state: State::Starting,
            ending: None,
            pid: None,
            parent: None,
            generation: 0,
            image: image.digest,
            cpus: request.cpus,
            memory_bytes: request.memory_bytes,
            command: request.command,
            env: request.env,
            cwd: request.cwd,
            user: request.user,
            kernel: request.kernel,
            created_ms: now_ms(),
            owner: self.0.db.owner().to_owned(),
            epoch: 1,
            layer: None,
            sleep: None,
            woken: None,
            idle_timeout_ms: request.idle_timeout_ms,
            network,
        };
        let published = ports.iter().map(|bound| bound.port).collect();
        let inserted = self.0.db.insert_vms(move |is_taken| {
            let name = chosen.unwrap_or_else(|| names::made_up(id, is_taken));
            if is_taken(&name) {
                return (Vec::new(), Err(FleetError::NameTaken(name)));
            }
            let record = Record { name, ..record };
            (vec![Insert { record: record.clone(), inherited: Vec::new(), published }], Ok(record))
        });
        let record = inserted.await??;
        tracing::info!(vm = record.id, name = record.name, "created");
        self.serve_ports(&record.id, ports);

        if let Err(error) = self.boot(&record, Vec::new(), Disk::New { disk_bytes }).await {
            self.discard(&record).await;
            return Err(error);
        }
        drop(turn);
        Ok(Vm { no_network, ..self.get(&record.id).await? })
    }

    /// Boots a stopped VM again, from what its disk had when it ended.
    pub(crate) async fn start(&self, name: &str) -> Result<Vm, FleetError> {
        let id = self.find(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let record = self.find(&id).await?;
        if record.state != State::Stopped {
            return Err(wrong_state(&record, "start"));
        }
        let mut inherited = self.0.db.layers(&id).await?;
        inherited.pop(); // Its own.
        let most = network::most_layers(&record, MAX_RECOVERED_LAYERS);
        if inherited.len() > most {
            return Err(FleetError::TooDeep {
                name: record.name,
                wanted: "start",
                layers: inherited.len() + 1,
                most: most + 1,
            });
        }
        room::check(&self.0.meminfo, || record.name.clone(), room::PER_BOOT)?;
        if !self.0.db.change(&id, record.epoch, Change::Starting).await? {
            return Err(wrong_state(&record, "start"));
        }
        if let Err(error) = self.boot(&record, inherited, Disk::Kept).await {
            if self.0.supervisor.kill(&id).await.is_none() {
                self.0.supervisor.sweep(&id).await;
                self.0.db.change(&id, record.epoch, Change::Stopped { ending: "did not start" }).await?;
            }
            return Err(error);
        }
        self.get(&id).await
    }

    /// Boots VM `record` and waits until its agent answers. After an error its monitor may still run.
    async fn boot(&self, record: &Record, inherited: Vec<String>, disk: Disk) -> Result<(), FleetError> {
        let inner = &self.0;
        let (fleet, of) = (self.clone(), record.clone());
        let (own, control, shared, boot, console_start) = blocking(move || {
            let inner = &fleet.0;
            let boot = inner.guests.prepare(&inner.paths, &of)?;
            let console_start = logs::len(&inner.paths, &of.id);
            let (own, control) = match disk {
                Disk::New { .. } => Own::create(&inner.paths, &of.id, of.layer())?,
                Disk::Kept => Own::open(&inner.paths, &of.id, of.layer())?,
            };
            files::sync_names(&inner.paths, [of.layer()]).map_err(cannot("sync the disk's folder"))?;
            let kvm = open_kvm(&inner.kvm)?;
            let shared = Shared::open(&inner.paths, kvm, &of.image, &inherited, matches!(disk, Disk::Kept))?;
            Ok((own, control, shared, boot, console_start))
        })
        .await?;

        let network = self.give_network(record).await?;
        let start = Start {
            origin: Origin::Boot(Boot {
                vcpus: record.cpus,
                memory_bytes: record.memory_bytes,
                disk_bytes: match disk {
                    Disk::New { disk_bytes } => disk_bytes,
                    Disk::Kept => 0, // Its journal knows.
                },
                command_line: guest::COMMAND_LINE.into(),
                recover_layers: matches!(disk, Disk::Kept),
            }),
            generation: random()?,
            inherited_layers: shared.layer_count(),
            layer: inner.paths.layer(record.layer()).display().to_string(),
            network: network.start(record),
        };
        let process = self.spawn(record, control).await?;
        let pid = process.pid();
        let cannot_boot = |source| FleetError::Monitor { name: record.name.clone(), wanted: "boot", source };
        let monitor = match Monitor::connect(&inner.paths.control_socket(&record.id)) {
            Ok(monitor) => Arc::new(monitor),
            Err(error) => {
                process.kill();
                process.end(&record.id).await;
                return match error {
                    // It had the listening socket, and took it along.
                    MonitorError::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        Err(self.boot_failed(record, format!("it {}", launch::as_clause(DIED)), console_start).await)
                    }
                    error => Err(cannot_boot(error)),
                };
            }
        };
        let (live, answered) = inner.supervisor.supervise(&record.id, record.epoch, process, Arc::clone(&monitor));
        inner.db.change(&record.id, record.epoch, Change::Monitored { pid }).await?;
        let vsock = inner.paths.vsock_socket(&record.id);
        let up = async {
            monitor.send(&Request::Watch, &[]).await?;
            monitor.send(&Request::Start(start), &descriptors(&shared, &own, boot.fds(), &network)).await?;
            launch::started(answered).await?;
            drop((own, shared, boot, network)); // They are the monitor's now.
            Ok(Agent::reach(&vsock, &AgentRequest::Ping, BOOT_LIMIT).await)
        };
        let reason = tokio::select! {
            biased; // What it said before its end goes first.
            up = up => match up {
                Ok(Ok(_)) => None,
                Ok(Err(AgentError::Late { source, .. })) => {
                    let last = source.map_or_else(String::new, |error| format!(" ({error})"));
                    Some(format!("its agent did not answer within {} s{last}", BOOT_LIMIT.as_secs()))
                }
                Ok(Err(error)) => Some(error.to_string()),
                // How it ended says more.
                Err(MonitorError::Ended) => Some(format!("it {}", launch::ended(&live).await)),
                Err(error) => return Err(cannot_boot(error)),
            },
            ending = launch::ended(&live) => Some(format!("it {ending}")),
        };
        let Some(reason) = reason else {
            let running = Change::Running { detail: "booted" };
            return match inner.db.change(&record.id, record.epoch, running).await? {
                true => Ok(()),
                false => Err(wrong_state(&self.find(&record.id).await?, "use")),
            };
        };
        Err(self.boot_failed(record, reason, console_start).await)
    }

    /// An error with what VM `record` wrote to its console behind `start`.
    async fn boot_failed(&self, record: &Record, reason: String, start: u64) -> FleetError {
        let (paths, id) = (self.0.paths.clone(), record.id.clone());
        match blocking(move || Ok(logs::last_lines(&paths, &id, start))).await {
            Ok(console) => FleetError::Boot { name: record.name.clone(), reason, console },
            Err(error) => error,
        }
    }

    /// Starts a monitor for `record`.
    pub(super) async fn spawn(&self, record: &Record, control: Listener) -> Result<Process, FleetError> {
        let inner = &self.0;
        let (monitor, name, log) = (inner.monitor.clone(), record.name.clone(), inner.paths.monitor_log(&record.id));
        blocking(move || spawn(&monitor, &name, control, &log).map_err(cannot(format!("run {}", monitor.display()))))
            .await
    }

    /// Ends and removes a VM that did not come to life, as far as that is possible.
    pub(super) async fn discard(&self, record: &Record) {
        let id = &record.id;
        self.log_last_seen(record).await;
        if self.0.supervisor.kill(id).await.is_none() {
            self.0.supervisor.end_unknown(id).await;
        }
        if let Err(error) = self.erase(record).await {
            tracing::error!(vm = id, error = error.in_one_line(), "cannot remove a VM that did not start");
        }
    }
}

/// Where a disk comes from.
#[derive(Debug, Clone, Copy)]
enum Disk {
    /// The image, and zeroes behind it up to so many bytes.
    New { disk_bytes: u64 },
    /// What an earlier life of the VM left.
    Kept,
}

/// `request` with everything in range, or what is not.
fn checked(mut request: RunRequest) -> Result<RunRequest, FleetError> {
    if let Some(name) = &request.name {
        names::check(name)?;
    }
    if let Some(ms @ 1..) = request.idle_timeout_ms {
        settings::check_idle_timeout(Duration::from_millis(ms)).map_err(FleetError::Invalid)?;
    }
    if !(1..=MAX_CPUS).contains(&request.cpus) {
        return Err(FleetError::Invalid(format!("{} vCPUs are not possible: 1 to {MAX_CPUS} are", request.cpus)));
    }
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&request.memory_bytes) {
        return Err(FleetError::Invalid(format!(
            "{} MiB of RAM are not possible: {} to {} are",
            request.memory_bytes >> 20,
            MIN_MEMORY >> 20,
            MAX_MEMORY >> 20
        )));
    }
    // Stays in range: the upper end is a multiple.
    request.memory_bytes = request.memory_bytes.next_multiple_of(MEMORY_UNIT);
    let has_nul = |text: &String| text.contains('\0');
    if request.command.iter().any(has_nul) || request.env.iter().any(|(name, value)| has_nul(name) || has_nul(value)) {
        return Err(FleetError::Invalid("a command and its environment cannot hold a NUL".into()));
    }
    check_env(request.env.keys())?;
    Ok(request)
}

/// Checks the names of environment variables.
pub(super) fn check_env<'a>(mut names: impl Iterator<Item = &'a String>) -> Result<(), FleetError> {
    match names.find(|name| name.is_empty() || name.contains(['=', '\0'])) {
        Some(name) => Err(FleetError::Invalid(format!("{name:?} cannot be the name of a variable"))),
        None => Ok(()),
    }
}

/// The size of the disk of a new VM.
fn disk_bytes(asked: Option<u64>, image_bytes: u64) -> Result<u64, FleetError> {
    let asked = asked.unwrap_or(image_bytes);
    if asked < image_bytes {
        return Err(FleetError::Invalid(format!(
            "a disk of {asked} bytes is too small for an image of {image_bytes} bytes"
        )));
    }
    if asked > MAX_DISK_BYTES {
        return Err(FleetError::Invalid(format!("a disk of {asked} bytes is not possible: {MAX_DISK_BYTES} are")));
    }
    Ok(asked.next_multiple_of(BLOCK_BYTES))
}

/// Random bytes that no other VM gets.
pub(super) fn random<const N: usize>() -> Result<[u8; N], FleetError> {
    let mut bytes = [0; N];
    // Fewer than 256 bytes never come in two parts.
    rustix::io::retry_on_intr(|| getrandom(&mut bytes, GetRandomFlags::empty()))
        .map_err(|error| cannot("get random bytes")(io::Error::from(error)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> RunRequest {
        serde_json::from_str(r#"{"image": "x"}"#).unwrap()
    }

    #[test]
    fn what_a_machine_cannot_have_is_refused() {
        assert!(checked(request()).is_ok());
        assert!(checked(RunRequest { cpus: 0, ..request() }).is_err());
        assert!(checked(RunRequest { cpus: 33, ..request() }).is_err());
        assert!(checked(RunRequest { memory_bytes: MIN_MEMORY - 1, ..request() }).is_err());
        assert!(checked(RunRequest { memory_bytes: MAX_MEMORY + 1, ..request() }).is_err());
        assert!(checked(RunRequest { env: [("A=B".into(), "".into())].into(), ..request() }).is_err());
        let odd = checked(RunRequest { memory_bytes: MIN_MEMORY + 1, ..request() }).unwrap();
        assert_eq!(odd.memory_bytes, MIN_MEMORY + MEMORY_UNIT);
    }

    #[test]
    fn a_disk_is_as_large_as_its_image_or_larger() {
        assert_eq!(disk_bytes(None, 8192).unwrap(), 8192);
        assert_eq!(disk_bytes(Some(8193), 8192).unwrap(), 12288);
        assert!(disk_bytes(Some(4096), 8192).is_err());
        assert!(disk_bytes(Some(u64::MAX), 8192).is_err());
    }
}
