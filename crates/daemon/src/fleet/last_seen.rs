//! What can be seen of a VM that did not come to life. It is for the log: nothing of the VM is left afterwards.

use super::{Fleet, blocking, logs};
use crate::db::Record;
use std::fs;
use std::path::Path;

impl Fleet {
    /// Logs the end of the console of `vm`, and what the threads of its monitor are at, if it lives.
    pub(super) async fn log_last_seen(&self, vm: &Record) {
        let (paths, id) = (self.0.paths.clone(), vm.id.clone());
        let pid = self.0.supervisor.live(&id).map(|live| live.pid());
        let seen = blocking(move || Ok((logs::last_lines(&paths, &id, 0), pid.map_or(Vec::new(), threads))));
        let Ok((console, threads)) = seen.await else { return };
        tracing::warn!(vm = vm.id, name = vm.name, ?console, ?threads, "it did not come to life");
    }
}

/// Each thread of a process: its name, its state as proc(5) has it, and where in the kernel it sleeps, if we may know.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| thread(&task.path())).collect()
}

fn thread(task: &Path) -> Option<String> {
    // The name is in parentheses, and may itself have some.
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let state = rest.split_whitespace().next()?;
    let sleeps_in = fs::read_to_string(task.join("wchan")).unwrap_or_default();
    Some(format!("{name} {state} {sleeps_in}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_told_of_by_its_name_and_state() {
        let sleeper = std::thread::Builder::new().name("a (sleeper)".into());
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sleeper = sleeper.spawn(move || stopped.recv()).unwrap();
        let sleeps = || threads(std::process::id()).iter().any(|thread| thread.starts_with("a (sleeper) S"));
        while !sleeps() {
            std::thread::yield_now();
        }
        drop(stop);
        let _ = sleeper.join().unwrap();
        assert_eq!(threads(u32::MAX), [""; 0]);
    }
}
