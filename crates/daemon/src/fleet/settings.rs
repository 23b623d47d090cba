//! The settings of this daemon, kept in the database. They hold at once.

use super::Fleet;
use super::error::FleetError;
use crate::settings::Settings;
use pando_wire::api::Setting;
use tokio::sync::{Mutex, watch};

/// How everything is set now.
#[derive(Debug)]
pub(super) struct Board {
    now: watch::Sender<Settings>,
    /// Held by whoever changes one: the last that is written down is the last that holds.
    turn: Mutex<()>,
}

impl Board {
    pub(super) fn new(settings: Settings) -> Self {
        Self { now: watch::Sender::new(settings), turn: Mutex::default() }
    }

    /// How everything is set.
    pub(super) fn now(&self) -> Settings {
        self.now.borrow().clone()
    }

    /// The same, to wait for changes.
    pub(super) fn watch(&self) -> watch::Receiver<Settings> {
        self.now.subscribe()
    }
}

impl Fleet {
    /// Every setting.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        self.0.settings.now().list()
    }

    /// One setting.
    pub(crate) fn setting(&self, name: &str) -> Result<Setting, FleetError> {
        Ok(self.0.settings.now().get(name)?)
    }

    /// Changes a setting, from now on and for the daemons after this one.
    pub(crate) async fn set(&self, name: &str, value: &str) -> Result<Setting, FleetError> {
        let board = &self.0.settings;
        let _turn = board.turn.lock().await;
        let mut settings = board.now();
        let value = settings.set(name, value)?;
        self.0.db.set(name, Some(&value)).await?;
        self.take(settings, name)
    }

    /// Makes a setting what it is when nobody sets it.
    pub(crate) async fn unset(&self, name: &str) -> Result<Setting, FleetError> {
        let board = &self.0.settings;
        let _turn = board.turn.lock().await;
        let mut settings = board.now();
        let default = settings.get(name)?.default;
        settings.set(name, &default)?;
        self.0.db.set(name, None).await?;
        self.take(settings, name)
    }

    fn take(&self, settings: Settings, name: &str) -> Result<Setting, FleetError> {
        let setting = settings.get(name)?;
        tracing::info!(key = setting.key, value = setting.value, "set");
        self.0.settings.now.send_replace(settings);
        Ok(setting)
    }
}
