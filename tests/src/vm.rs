//! A VM of the test's own.

use crate::daemon::{TestDaemon, send, tail};
use crate::{Run, wait_for};
use pando_wire::api::{ForkReport, State, Vm};
use std::time::Duration;

/// Until the daemon has noticed that a VM ended.
const NOTICE_LIMIT: Duration = Duration::from_secs(60);

/// A VM that is removed at the end of the test. When the test fails, the end of its console is shown.
#[derive(Debug)]
pub struct TestVm<'d> {
    daemon: &'d TestDaemon,
    name: String,
}

impl<'d> TestVm<'d> {
    /// The VM that is called so.
    pub fn new(daemon: &'d TestDaemon, name: &str) -> Self {
        Self { daemon, name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its daemon.
    pub fn daemon(&self) -> &'d TestDaemon {
        self.daemon
    }

    /// What the daemon knows of it, if anything.
    pub fn find(&self) -> Option<Vm> {
        self.daemon.vm(&self.name)
    }

    /// What the daemon knows of it.
    ///
    /// # Panics
    ///
    /// When it knows nothing.
    pub fn inspect(&self) -> Vm {
        self.find().unwrap_or_else(|| panic!("no VM is called {}", self.name))
    }

    /// Process id of its monitor.
    ///
    /// # Panics
    ///
    /// When it has none.
    pub fn pid(&self) -> u32 {
        self.inspect().pid.unwrap_or_else(|| panic!("{} has no monitor", self.name))
    }

    /// Runs a program in it.
    pub fn exec(&self, argv: &[&str]) -> Run {
        self.exec_with(&[], argv, &[])
    }

    /// Runs a program in it, with options of `pando exec` and standard input.
    pub fn exec_with(&self, options: &[&str], argv: &[&str], input: &[u8]) -> Run {
        let mut args = vec!["exec"];
        args.extend(options);
        args.push(&self.name);
        args.extend(argv);
        self.daemon.pando_with(&args, input)
    }

    /// Runs a shell script in it.
    ///
    /// # Panics
    ///
    /// When it fails.
    #[track_caller]
    pub fn sh(&self, script: &str) -> String {
        self.exec(&["sh", "-c", script]).ok()
    }

    /// Starts a program in it that goes on when nobody watches.
    #[track_caller]
    pub fn start(&self, command: &str) {
        self.sh(&format!("setsid {command} </dev/null >/dev/null 2>&1 &"));
    }

    /// Process ids of programs in it whose command lines have these words among their first 60 characters.
    pub fn running(&self, words: &str) -> Vec<u32> {
        let list = self.exec(&["ps", "-o", "pid,args"]).ok();
        let found = list.lines().filter(|line| line.contains(words));
        found.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
    }

    /// Ends those.
    pub fn end(&self, words: &str) {
        for pid in self.running(words) {
            self.exec(&["kill", "-9", &pid.to_string()]); // It may have ended by itself.
        }
    }

    /// What a file in it holds.
    #[track_caller]
    pub fn read(&self, path: &str) -> String {
        self.exec(&["cat", path]).ok()
    }

    /// Writes a file in it.
    #[track_caller]
    pub fn write(&self, path: &str, text: &str) {
        self.exec_with(&["-i"], &["sh", "-c", &format!("cat > {path}")], text.as_bytes()).ok();
    }

    /// One child, with a name made from this one's.
    #[track_caller]
    pub fn fork(&self) -> Self {
        self.fork_with(&[]).1.remove(0)
    }

    /// Children, with options of `pando fork`, and how the fork went. All of them must run.
    #[track_caller]
    pub fn fork_with(&self, options: &[&str]) -> (ForkReport, Vec<Self>) {
        let mut args = vec!["fork", "-o", "json"];
        args.extend(options);
        args.push(&self.name);
        let run = self.daemon.pando(&args);
        let report: ForkReport = serde_json::from_str(&run.clone().ok()).expect("a fork's report as JSON");
        let children = report.children.iter().map(|child| Self::new(self.daemon, &child.name)).collect();
        (report, children)
    }

    /// Sends a signal to its monitor.
    pub fn signal(&self, signal: &str) {
        send(self.pid(), signal);
    }

    /// Waits until the daemon says that it has ended. Why, and how long that took.
    pub fn wait_until_stopped(&self) -> (String, Duration) {
        let took = wait_for("the VM ends", NOTICE_LIMIT, || self.inspect().state == State::Stopped);
        (self.inspect().ending.unwrap_or_default(), took)
    }

    /// All that it wrote to its console.
    pub fn console(&self) -> String {
        self.daemon.pando(&["logs", &self.name]).stdout
    }

    /// Leaves it where it is.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for TestVm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console of {}\n{}", self.name, tail(&self.console()));
            // A program that the kernel ended is named there, with the address. It may be a guest that does not answer.
            eprintln!("--- kernel of {}\n{}", self.name, tail(&self.exec(&["dmesg"]).stdout));
            self.daemon.tell();
        }
        self.daemon.pando(&["rm", "-f", &self.name]); // It may be gone already.
    }
}
