//! A monitor is told what to be, and looked after from before that.
//!
//! On one connection, in this order: `Watch`, so that no end is missed, however soon it comes; of a child of a fork, which
//! the daemon did not start itself, `Status`, for its process id; then `Start`.

use crate::monitor::{LONG, Monitor, MonitorError};
use crate::supervisor::{Live, Process};
use pando_wire::control::{Response, StartTimings};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Waits until a child of a fork lives, and takes hold of it. `monitor` was sent a `Watch` and a `Status`.
pub(super) async fn born(monitor: &Monitor) -> Result<Process, MonitorError> {
    let said = async {
        match (monitor.receive().await?, monitor.receive().await?) {
            (Response::Done, Response::Status(status)) => Ok(status.pid),
            _ => Err(MonitorError::Confused),
        }
    };
    let pid = timeout(LONG, said).await.map_err(|_| MonitorError::Late(LONG))??;
    // It cannot have been reaped: it is our child, or was never alive.
    Process::hold(pid).map_err(MonitorError::Process)
}

/// Waits for what a monitor answers to its `Start`.
pub(super) async fn started(answered: oneshot::Receiver<Response>) -> Result<StartTimings, MonitorError> {
    match timeout(LONG, answered).await {
        Err(_) => Err(MonitorError::Late(LONG)),
        Ok(Err(_)) => Err(MonitorError::Ended),
        Ok(Ok(Response::Started(timings))) => Ok(timings),
        Ok(Ok(Response::Refused(chain))) => Err(MonitorError::Refused(chain)),
        Ok(Ok(_)) => Err(MonitorError::Confused),
    }
}

/// Waits until a VM that is to come to life has ended; the answer is how, behind "it".
pub(super) async fn ended(live: &Live) -> String {
    as_clause(&live.ended().await)
}

/// An ending behind "it".
pub(super) fn as_clause(ending: &str) -> String {
    match ending {
        "killed" => "was killed".into(),
        "reset" => "asked for a reset".into(),
        crate::supervisor::DIED => "ended: its monitor died".into(),
        other => other.into(),
    }
}
