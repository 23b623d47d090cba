//! What a daemon can be told while it runs, and the next one remembers.
//!
//! The only place that knows settings by their names and as text: elsewhere they are fields of [`Settings`].

use pando_wire::api::{NetworkMode, Setting};
use pando_wire::duration;
use std::time::Duration;

/// How short and how long a VM can be idle before it hibernates.
const IDLE_TIMEOUT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(8760);

/// How everything is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// After how long without use a VM hibernates by itself; never when `None`.
    pub(crate) idle_timeout: Option<Duration>,
    /// The network of a VM that does not say which it wants.
    pub(crate) net: Net,
}

/// The network of a VM that does not say which it wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Net {
    /// What the host reaches, and none where none can be made.
    #[default]
    Auto,
    /// This one, and no VM where it cannot be made.
    Always(NetworkMode),
}

/// One of them, as people know it.
#[derive(Debug)]
struct Key {
    name: &'static str,
    about: &'static str,
    /// Takes a value, or says in a sentence why not.
    set: fn(&mut Settings, &str) -> Result<(), String>,
    show: fn(&Settings) -> String,
}

const KEYS: [Key; 2] = [
    Key {
        name: "idle-timeout",
        about: "a VM without exec, API or CPU use for so long hibernates by itself: a duration, or off",
        set: |settings, value| idle_timeout(value).map(|timeout| settings.idle_timeout = timeout),
        show: |settings| settings.idle_timeout.map_or_else(|| OFF.to_owned(), duration::show),
    },
    Key {
        name: "net",
        about: "the network of a VM that is run without --net: nat, none, isolated, or auto, which is nat where that can be",
        set: |settings, value| net(value).map(|net| settings.net = net),
        show: |settings| net_name(settings.net).to_owned(),
    },
];

const OFF: &str = "off";
const NETS: [Net; 4] =
    [Net::Always(NetworkMode::Nat), Net::Always(NetworkMode::None), Net::Always(NetworkMode::Isolated), Net::Auto];

/// Why a setting cannot be read or set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SettingError {
    /// It has another name.
    #[error("no setting is called {0}: there is {names}", names = KEYS.map(|key| key.name).join(", "))]
    Unknown(String),
    /// It cannot be that.
    #[error("{key} cannot be {value:?}: {reason}")]
    Value {
        /// Which setting.
        key: &'static str,
        /// What was wanted.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Settings {
    /// What was written down. What this build does not understand is as if it had not been set, and is logged.
    pub(crate) fn remembered(rows: &[(String, String)]) -> Self {
        let mut settings = Self::default();
        for (name, value) in rows {
            if let Err(error) = settings.set(name, value) {
                tracing::warn!(%error, "a setting is not what it was");
            }
        }
        settings
    }

    /// Changes one of them. The answer is its value as it is written down.
    pub(crate) fn set(&mut self, name: &str, value: &str) -> Result<String, SettingError> {
        let key = find(name)?;
        let refused = |reason| SettingError::Value { key: key.name, value: value.to_owned(), reason };
        (key.set)(self, value).map_err(refused)?;
        Ok((key.show)(self))
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<Setting> {
        KEYS.iter().map(|key| self.tell(key)).collect()
    }

    /// One of them.
    pub(crate) fn get(&self, name: &str) -> Result<Setting, SettingError> {
        find(name).map(|key| self.tell(key))
    }

    fn tell(&self, key: &Key) -> Setting {
        Setting {
            key: key.name.to_owned(),
            value: (key.show)(self),
            default: (key.show)(&Self::default()),
            about: key.about.to_owned(),
        }
    }
}

fn find(name: &str) -> Result<&'static Key, SettingError> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| SettingError::Unknown(name.to_owned()))
}

fn idle_timeout(value: &str) -> Result<Option<Duration>, String> {
    if value == OFF {
        return Ok(None);
    }
    let timeout = duration::parse(value).map_err(|_| "it is off, or a duration such as 5m".to_owned())?;
    check_idle_timeout(timeout).map(|()| Some(timeout))
}

fn net(value: &str) -> Result<Net, String> {
    let found = NETS.into_iter().find(|net| net_name(*net) == value);
    found.ok_or_else(|| format!("it is {}", NETS.map(net_name).join(", ")))
}

fn net_name(net: Net) -> &'static str {
    match net {
        Net::Auto => "auto",
        Net::Always(NetworkMode::None) => "none",
        Net::Always(NetworkMode::Nat) => "nat",
        Net::Always(NetworkMode::Isolated) => "isolated",
    }
}

/// Whether a VM can hibernate after `timeout`, or in a sentence why not.
pub(crate) fn check_idle_timeout(timeout: Duration) -> Result<(), String> {
    if IDLE_TIMEOUT.contains(&timeout) {
        return Ok(());
    }
    let (least, most) = (duration::show(*IDLE_TIMEOUT.start()), duration::show(*IDLE_TIMEOUT.end()));
    Err(format!("an idle timeout of {} is not possible: {least} to {most} are", duration::show(timeout)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_takes_what_it_shows() {
        let defaults = Settings::default();
        for setting in defaults.list() {
            assert_eq!(setting.value, setting.default);
            let mut settings = Settings::default();
            assert_eq!(settings.set(&setting.key, &setting.value).as_ref(), Ok(&setting.value));
            assert_eq!(settings, defaults);
        }
    }

    #[test]
    fn an_idle_timeout_is_a_duration_within_reason_or_off() {
        let mut settings = Settings::default();
        assert_eq!(settings.set("idle-timeout", "300s").unwrap(), "5m");
        assert_eq!(settings.idle_timeout, Some(Duration::from_secs(300)));
        for (value, reason) in [
            ("soon", "it is off, or a duration such as 5m"),
            ("0", "an idle timeout of 0ms is not possible: 1s to 8760h are"),
            ("8761h", "an idle timeout of 8761h is not possible: 1s to 8760h are"),
        ] {
            let refused = settings.set("idle-timeout", value).unwrap_err().to_string();
            assert_eq!(refused, format!("idle-timeout cannot be {value:?}: {reason}"));
        }
        assert_eq!(settings.idle_timeout, Some(Duration::from_secs(300)), "what is refused changes nothing");
        settings.set("idle-timeout", "off").unwrap();
        assert_eq!(settings.idle_timeout, None);
    }

    #[test]
    fn a_network_is_one_of_four_words() {
        let mut settings = Settings::default();
        assert_eq!(settings.net, Net::Auto);
        for net in NETS {
            settings.set("net", net_name(net)).unwrap();
            assert_eq!(settings.net, net);
        }
        let refused = settings.set("net", "bridge").unwrap_err().to_string();
        assert_eq!(refused, "net cannot be \"bridge\": it is nat, none, isolated, auto");
    }

    #[test]
    fn what_no_build_knows_is_refused_by_name_and_does_not_hurt_when_it_was_written_down() {
        let unknown = Settings::default().get("color").unwrap_err().to_string();
        assert_eq!(unknown, "no setting is called color: there is idle-timeout, net");
        let rows = [("color", "red"), ("idle-timeout", "2m")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(Settings::remembered(&rows).idle_timeout, Some(Duration::from_secs(120)));
    }
}
