//! Children before they are born: everything that need not wait for it. Names, records, files, sockets.

use super::boot::check_env;
use super::error::{FleetError, cannot};
use super::files::{Own, Shared, open_kvm};
use super::turns::Turn;
use super::{Fleet, blocking, names};
use crate::db::{Insert, Record, now_ms};
use crate::paths::Paths;
use crate::publish::Bound;
use futures_util::future::join_all;
use pando_wire::api::{ChildReport, ChildSpec, State};
use pando_wire::control::Listener;
use std::collections::HashSet;
use std::io;
use uuid::Uuid;

/// How many threads create the files of children.
const CREATORS: usize = 4;

impl Fleet {
    /// Does all that need not wait for the fork: records, files, sockets.
    ///
    /// Every child is as `model` is but for what is its own (id, name, further environment, layer). `layers` are those
    /// that it inherits.
    pub(super) async fn prepare(
        &self,
        model: &Record,
        layers: &[String],
        specs: Vec<ChildSpec>,
    ) -> Result<(Shared, Vec<Child>), FleetError> {
        let networks = self.expect_networks(model, specs.len());
        let (of, inherited) = (model.clone(), layers.to_vec());
        let mut seats = Vec::new();
        for spec in specs {
            // So that nothing is made when another has them.
            let ports = self.take_ports(&spec.publish).await?;
            let id = Uuid::now_v7().to_string();
            // Before anybody can see the child, so that nobody removes one that is about to be born.
            let turn = self.0.turns.vm(&id).await;
            seats.push((Seat { id, turn, ports }, spec));
        }
        let mut planned = self.0.db.insert_vms(move |is_taken| plan(&of, &inherited, seats, is_taken)).await?;
        for birth in planned.iter_mut().filter_map(|child| child.plan.as_mut().ok()) {
            self.serve_ports(&birth.record.id, std::mem::take(&mut birth.ports));
        }

        let plans = planned.iter().filter_map(|child| child.plan.as_ref().ok());
        let records: Vec<_> = plans.map(|birth| birth.record.clone()).collect();
        // Both to their ends: nothing may be created once it is being removed.
        let (shared, mut children) = match tokio::join!(self.open_shared(model, layers), self.create_all(planned)) {
            (Ok(shared), Ok(children)) => (shared, children),
            (shared, created) => {
                // The turns of the children are in `created`.
                join_all(records.iter().map(|record| self.discard(record))).await;
                return Err(shared.err().or(created.err()).unwrap_or(FleetError::CutShort));
            }
        };
        for child in &mut children {
            if let Err((birth, _)) = &mut child.prepared
                && let Some(birth) = birth.take()
            {
                self.discard(&birth.record).await;
            }
        }
        Ok((shared.expecting(networks), children))
    }

    /// Opens what all children have in common.
    async fn open_shared(&self, model: &Record, layers: &[String]) -> Result<Shared, FleetError> {
        let (fleet, image, layers) = (self.clone(), model.image.clone(), layers.to_vec());
        blocking(move || {
            let kvm = open_kvm(&fleet.0.kvm)?;
            Shared::open(&fleet.0.paths, kvm, &image, &layers, false)
        })
        .await
    }

    /// Creates the files and sockets of every child, on a few threads: on a disk it is the larger part of the time
    /// that a large fork takes before it begins.
    async fn create_all(&self, planned: Vec<Planned>) -> Result<Vec<Child>, FleetError> {
        let share = planned.len().div_ceil(CREATORS);
        let mut planned = planned.into_iter();
        let mut creating = Vec::new();
        while planned.len() > 0 {
            let (fleet, some) = (self.clone(), planned.by_ref().take(share).collect::<Vec<_>>());
            creating.push(tokio::task::spawn_blocking(move || {
                some.into_iter().map(|child| create(&fleet.0.paths, child)).collect::<Vec<_>>()
            }));
        }
        let mut children = Vec::new();
        for created in creating {
            children.extend(created.await.map_err(|_| FleetError::CutShort)?);
        }
        Ok(children)
    }

    /// Makes the names of all layers durable.
    pub(super) async fn sync_layer_names(&self) -> Result<(), FleetError> {
        let paths = self.0.paths.clone();
        blocking(move || crate::paths::sync(&paths.all_layers()).map_err(cannot("sync the disks' folder"))).await
    }

    /// In the background, makes durable what is in the children's layers (empty files, which a guest's first flush makes
    /// durable on every common file system): to wait for the disk once per child would make a large fork a slow one.
    pub(super) fn sync_layers(&self, reports: &[ChildReport]) {
        let paths = self.0.paths.clone();
        let ids: Vec<_> = reports.iter().filter_map(|report| report.id.clone()).collect();
        tokio::task::spawn_blocking(move || {
            for id in ids {
                match crate::paths::sync(&paths.layer(&id)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        tracing::error!(vm = id, %error, "cannot sync its disk's folder");
                    }
                    _ => (), // Done, or removed by now.
                }
            }
        });
    }
}

/// What a child is before anybody knows whether there will be one: its id, the turn of it, and its ports of the host.
struct Seat {
    id: String,
    turn: Turn,
    ports: Vec<Bound>,
}

/// A child that is in the database, and that nobody else does anything with until it runs or is removed.
pub(super) struct Birth {
    pub(super) record: Record,
    /// Until they are served.
    ports: Vec<Bound>,
    _turn: Turn,
}

/// A child as it was asked for.
struct Planned {
    name: String,
    plan: Result<Birth, FleetError>,
}

/// A child with everything that can be had before the fork.
pub(super) struct Child {
    pub(super) name: String,
    /// Or why not, and what has to be removed again.
    pub(super) prepared: Result<Prepared, (Option<Birth>, FleetError)>,
}

/// Its files and its control socket.
pub(super) struct Prepared {
    pub(super) birth: Birth,
    pub(super) own: Own,
    pub(super) control: Listener,
}

/// Decides what each child will be; `is_taken` tells which names are.
fn plan(
    model: &Record,
    layers: &[String],
    specs: Vec<(Seat, ChildSpec)>,
    is_taken: &dyn Fn(&str) -> bool,
) -> (Vec<Insert>, Vec<Planned>) {
    // A name that was chosen goes before one that is made up, wherever in the list they are.
    let mut chosen: HashSet<String> = HashSet::new();
    let checked: Vec<_> = specs
        .into_iter()
        .map(|(seat, spec)| {
            let checked = check_env(spec.env.keys()).and_then(|()| match &spec.name {
                None => Ok(()),
                Some(name) => {
                    names::check(name)?;
                    let is_free = !is_taken(name) && chosen.insert(name.clone());
                    if is_free { Ok(()) } else { Err(FleetError::NameTaken(name.clone())) }
                }
            });
            (seat, spec, checked)
        })
        .collect();
    let mut next = 1;
    let mut inserts = Vec::new();
    let planned = checked
        .into_iter()
        .map(|(Seat { id, turn, ports }, spec, checked)| {
            let name = spec.name.unwrap_or_else(|| {
                names::of_child(&model.name, &mut next, |name| is_taken(name) || chosen.contains(name))
            });
            let plan = checked.map(|()| {
                let mut env = model.env.clone();
                env.extend(spec.env);
                let record = Record {
                    id,
                    name: name.clone(),
                    state: State::Starting,
                    ending: None,
                    pid: None,
                    env,
                    created_ms: now_ms(),
                    epoch: 1,
                    layer: None,
                    sleep: None,
                    woken: None,
                    ..model.clone()
                };
                let published = ports.iter().map(|bound| bound.port).collect();
                inserts.push(Insert { record: record.clone(), inherited: layers.to_vec(), published });
                Birth { record, ports, _turn: turn }
            });
            Planned { name, plan }
        })
        .collect();
    (inserts, planned)
}

/// Creates the files and sockets of one child. Blocks.
fn create(paths: &Paths, child: Planned) -> Child {
    let prepared = match child.plan {
        Err(error) => Err((None, error)),
        Ok(birth) => match Own::create(paths, &birth.record.id, birth.record.layer()) {
            Ok((own, control)) => Ok(Prepared { birth, own, control }),
            Err(error) => Err((Some(birth), error)),
        },
    };
    Child { name: child.name, prepared }
}
