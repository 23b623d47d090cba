//! VMs whose memory comes as they touch it: each a fresh monitor with connections to a page server, whoever that is.

use super::Fleet;
use super::birth::Prepared;
use super::boot::{BOOT_LIMIT, random};
use super::error::FleetError;
use super::files::{Own, Shared, descriptors};
use super::twin::{Twin, failure};
use crate::db::Record;
use crate::monitor::{Monitor, MonitorError};
use futures_util::{StreamExt, stream};
use pando_wire::api::ChildReport;
use pando_wire::control::{Listener, Origin, Request, Start};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

/// How many begin at a time: each reads what it needs first.
const AT_ONCE: usize = 4;

/// What VMs have in common that begin like this.
pub(super) struct Source {
    /// As what they begin.
    pub(super) begins: Origin,
    pub(super) shared: Shared,
    /// When somebody asked for them.
    pub(super) arrival: Instant,
    /// How they came to be, in a word.
    pub(super) origin: &'static str,
}

impl Fleet {
    /// Brings several VMs to life, and makes the names of their disks durable.
    pub(super) async fn bring_all(
        &self,
        bringing: impl Iterator<Item = impl Future<Output = ChildReport>>,
    ) -> Vec<ChildReport> {
        let mut children: Vec<ChildReport> = stream::iter(bringing).buffered(AT_ONCE).collect().await;
        if let Err(error) = self.sync_layer_names().await {
            // They run all the same, and whoever asked must be told of them.
            for child in children.iter_mut().filter(|child| child.id.is_some()) {
                child.error.get_or_insert_with(|| error.in_one_line());
            }
        }
        self.sync_layers(&children);
        children
    }

    /// Brings one VM to life that is called `name`, with the connections that `pages` gives, or removes it.
    pub(super) async fn bring_or_discard(
        &self,
        name: String,
        prepared: Prepared,
        pages: impl Future<Output = Result<Vec<UnixStream>, FleetError>>,
        source: &Source,
    ) -> ChildReport {
        let Prepared { birth, own, control } = prepared;
        let record = &birth.record;
        let loaded = async { self.load(record, own, control, pages.await?, source).await };
        match loaded.await {
            Ok(report) => report,
            Err(error) => {
                tracing::warn!(vm = record.id, error = error.in_one_line(), "it does not come to life");
                self.discard(record).await;
                failure(name, &error)
            }
        }
    }

    /// Brings one VM to life, whose memory comes over the connections `pages`. After an error its monitor may still run.
    pub(super) async fn load(
        &self,
        record: &Record,
        own: Own,
        control: Listener,
        pages: Vec<UnixStream>,
        source: &Source,
    ) -> Result<ChildReport, FleetError> {
        let inner = &self.0;
        let network = self.give_network(record).await?;
        let start = Start {
            origin: source.begins.clone(),
            generation: random()?,
            inherited_layers: source.shared.layer_count(),
            layer: inner.paths.layer(record.layer()).display().to_string(),
            network: network.start(record),
        };
        let process = self.spawn(record, control).await?;
        let connected = Monitor::connect(&inner.paths.control_socket(&record.id));
        let failed = |source| FleetError::Monitor { name: record.name.clone(), wanted: "wake", source };
        let monitor = match connected {
            Ok(monitor) => Arc::new(monitor),
            Err(error) => {
                process.kill();
                process.end(&record.id).await;
                return Err(failed(error));
            }
        };
        let (live, answered) = inner.supervisor.supervise(&record.id, record.epoch, process, Arc::clone(&monitor));
        live.set_arrives(true);
        let files = descriptors(&source.shared, &own, pages.iter().map(AsFd::as_fd), &network);
        let told = async {
            monitor.send(&Request::Watch, &[]).await?;
            monitor.send(&Request::Start(start), &files).await
        };
        // One that has ended already is told of below.
        match told.await {
            Ok(()) | Err(MonitorError::Ended) => (),
            Err(error) => return Err(failed(error)),
        }
        drop(files);
        let Source { arrival, origin, .. } = *source;
        let twin = Twin { record: record.clone(), live, answered, arrival, origin };
        self.welcome(twin, BOOT_LIMIT, (own, pages, network), ()).await
    }
}
