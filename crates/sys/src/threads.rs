//! What a process is at, for a log.

use std::fs;
use std::path::Path;

/// Each thread of a process: its name, its state as proc(5) has it, its CPU time in clock ticks (in user mode + in the
/// kernel), and if we may know, where in the kernel it sleeps and in which system call, by its number and arguments.
pub fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.filter_map(|task| thread(&task.path())).collect()
}

fn thread(task: &Path) -> Option<String> {
    // The name is in parentheses, and may itself have some.
    let stat = fs::read_to_string(task.join("stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let (state, user, kernel) = (fields.next()?, fields.nth(10)?, fields.next()?);
    let sleeps_in = fs::read_to_string(task.join("wchan")).unwrap_or_default();
    let system_call = fs::read_to_string(task.join("syscall")).unwrap_or_default();
    Some(format!("{name} {state} {user}+{kernel} {sleeps_in} {}", system_call.trim_end()))
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
