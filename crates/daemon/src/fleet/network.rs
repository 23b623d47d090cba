//! The network of a VM: checked as it is asked for, made when it begins.
//!
//! Every beginning has a new one: a boot, a child, a wake. So a child and its parent never share one, and of a VM that slept
//! nothing is left outside that still thinks it is connected.

use super::error::{FleetError, cannot};
use super::{Fleet, blocking};
use crate::db::Record;
use crate::network::{Destination, DestinationError, Expected, NetworkError, Policy, Reach, Taken};
use crate::settings::Net;
use pando_wire::api::{Network, NetworkMode, NetworkRequest, Vm};
use pando_wire::control::StartNetwork;
use pando_wire::network::{MAX_QUEUE_PAIRS, Network as Inside};
use std::error::Error;
use std::os::fd::{AsFd, BorrowedFd};

/// How many layers fewer the disk of a VM with a network may have: its queues are descriptors in the same packet.
const LAYERS_LESS: usize = (MAX_QUEUE_PAIRS as usize).div_ceil(2);

/// Why a VM without a network gets none, and one with a network keeps it.
const UNCHANGEABLE: &str = "a VM has a network device from its boot on or never: what one without a network reaches \
     cannot be changed, and one with a network is cut off by isolated, not by none";

/// What a VM's monitor is given of its network, and `None` if that has none.
#[derive(Debug)]
pub(super) struct Given(Option<Taken>);

impl Given {
    /// As its monitor is told of it.
    pub(super) fn start(&self, record: &Record) -> Option<StartNetwork> {
        self.0.as_ref().map(|_| StartNetwork::of(record.cpus))
    }

    /// The last descriptors of its start.
    pub(super) fn queues(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().flat_map(|taken| taken.queues.iter().map(AsFd::as_fd))
    }
}

impl Fleet {
    /// The network of a VM that asks for `request`; and why that is none, where nobody said that it should be. One that cannot
    /// be is refused, before anything is made for the VM.
    pub(super) async fn choose_network(
        &self,
        request: NetworkRequest,
    ) -> Result<(Network, Option<String>), FleetError> {
        let NetworkRequest { mode, allow, deny, rate_bytes } = request;
        let is_told = !allow.is_empty() || !deny.is_empty() || rate_bytes.is_some();
        let (mode, lack) = match (mode, self.0.settings.now().net) {
            (Some(mode), _) => (mode, None),
            (None, _) if is_told => (NetworkMode::Nat, None),
            (None, Net::Always(mode)) => (mode, None),
            (None, Net::Auto) => match self.0.networks.prove().await {
                Ok(()) => (NetworkMode::Nat, None),
                Err(error) => (NetworkMode::None, Some(FleetError::NoNetwork(error).because().join(": "))),
            },
        };
        let network = Network { mode, allow, deny, rate_bytes };
        self.check_network(&network)?;
        Ok((network, lack))
    }

    /// Refuses a network that cannot be.
    fn check_network(&self, network: &Network) -> Result<(), FleetError> {
        match policy(network)? {
            None => Ok(()),
            Some(policy) => {
                self.0.networks.check(&policy).map_err(FleetError::NoNetwork)?;
                self.0.networks.support().map_err(|lack| FleetError::NoNetwork(NetworkError::Lack(lack)))
            }
        }
    }

    /// What an earlier daemon left of its networks, and VMs still have, is this one's. VMs of other kinds do not depend on it.
    pub(super) async fn adopt_networks(&self) -> Result<(), FleetError> {
        let fleet = self.clone();
        let adopted = blocking(move || Ok(fleet.0.networks.adopt())).await?;
        if let Err(error) = adopted {
            tracing::warn!(error = &error as &dyn Error, "cannot take over the networks of an earlier daemon");
        }
        Ok(())
    }

    /// The end of this daemon: networks that no VM has are gone.
    pub(crate) async fn close_networks(&self) {
        let fleet = self.clone();
        let closed = blocking(move || {
            fleet.0.networks.close();
            Ok(())
        })
        .await;
        if let Err(error) = closed {
            tracing::error!(error = error.in_one_line(), "cannot close the networks");
        }
    }

    /// Changes what a VM's network reaches: at once, and whenever it begins again. Its connections go on, but for those to what
    /// is no longer reached.
    pub(crate) async fn change_network(&self, name: &str, request: NetworkRequest) -> Result<Vm, FleetError> {
        let id = self.find(name).await?.id;
        let _turn = self.0.turns.vm(&id).await;
        let record = self.find(&id).await?;
        let NetworkRequest { mode, allow, deny, rate_bytes } = request;
        let network = Network { mode: mode.unwrap_or(record.network.mode), allow, deny, rate_bytes };
        if [network.mode, record.network.mode].contains(&NetworkMode::None) {
            return Err(FleetError::Invalid(UNCHANGEABLE.into()));
        }
        self.check_network(&network)?;
        let failed = |source| FleetError::Network { name: record.name.clone(), source };
        if let (Some(policy), Some(live)) = (policy(&network)?, self.0.supervisor.live(&id)) {
            let tap = blocking(move || live.process().tap().map_err(cannot("take hold of the tap of a VM"))).await?;
            self.0.networks.change(tap.ok_or_else(|| failed(NetworkError::NoTap))?, &policy).await.map_err(failed)?;
        }
        // Last: what is written down, and holds when it begins again, is what holds now.
        self.0.db.set_network(&id, record.epoch, &network).await?;
        tracing::info!(vm = id, ?network, "reaches something else");
        self.get(&id).await
    }

    /// So many VMs like `model` are about to begin, and need networks if they have any.
    pub(super) fn expect_networks(&self, model: &Record, count: usize) -> Option<Expected> {
        (model.network.mode != NetworkMode::None).then(|| self.0.networks.expect(count))
    }

    /// A network for VM `record`, which begins.
    pub(super) async fn give_network(&self, record: &Record) -> Result<Given, FleetError> {
        let Some(policy) = policy(&record.network)? else { return Ok(Given(None)) };
        let pairs = StartNetwork::of(record.cpus).queue_pairs;
        let taken = self.0.networks.take(pairs, &policy).await;
        let taken = taken.map_err(|source| FleetError::Network { name: record.name.clone(), source })?;
        tracing::debug!(vm = record.id, outside = %taken.outside, "has a network");
        Ok(Given(Some(taken)))
    }
}

/// What the guest of VM `record` is told of its network.
pub(super) fn inside(record: &Record) -> Option<Inside> {
    (record.network.mode != NetworkMode::None).then_some(Inside::GUEST)
}

/// How many layers the disk of VM `record` may have, where one without a network may have `most`.
pub(super) fn most_layers(record: &Record, most: usize) -> usize {
    if record.network.mode == NetworkMode::None { most } else { most - LAYERS_LESS }
}

/// What `network` asks for, if that is one.
fn policy(network: &Network) -> Result<Option<Policy>, FleetError> {
    let Network { mode, allow, deny, rate_bytes } = network;
    let reach = match mode {
        NetworkMode::Nat => Reach::Nat,
        NetworkMode::Isolated => Reach::Isolated,
        NetworkMode::None if allow.is_empty() && deny.is_empty() && rate_bytes.is_none() => return Ok(None),
        NetworkMode::None => {
            return Err(FleetError::Invalid(
                "a VM without a network has nothing that could be allowed or denied".into(),
            ));
        }
    };
    Ok(Some(Policy { reach, allow: destinations(allow)?, deny: destinations(deny)?, bytes_per_second: *rate_bytes }))
}

fn destinations(texts: &[String]) -> Result<Vec<Destination>, FleetError> {
    let parsed: Result<_, DestinationError> = texts.iter().map(|text| text.parse()).collect();
    parsed.map_err(|error| FleetError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_what_is_made() {
        let nat = Network { mode: NetworkMode::Nat, ..Network::default() };
        assert_eq!(policy(&Network::default()).unwrap(), None);
        assert_eq!(policy(&nat).unwrap(), Some(Policy::default()));
        let some = Network { allow: vec!["example.org".into()], deny: vec!["10.0.0.0/8".into()], ..nat.clone() };
        let some = policy(&some).unwrap().unwrap();
        assert_eq!((some.allow.len(), some.deny.len()), (1, 1));
        let isolated = policy(&Network { mode: NetworkMode::Isolated, ..nat }).unwrap().unwrap();
        assert_eq!(isolated.reach, Reach::Isolated);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let deny = |text: &str| vec![text.to_owned()];
        for network in [
            Network { deny: deny("10.0.0.0/8"), ..Network::default() },
            Network { mode: NetworkMode::Nat, deny: deny("10.0.0.0/33"), ..Network::default() },
            Network { mode: NetworkMode::Nat, allow: deny(""), ..Network::default() },
        ] {
            assert!(matches!(policy(&network), Err(FleetError::Invalid(_))), "{network:?}");
        }
    }
}
