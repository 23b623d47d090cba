//! `pando exec`.

use crate::daemon::Daemon;
use crate::pando::{is, run, run_with_stdin, wait, with};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::LocalModes;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

fn daemon() -> Daemon {
    Daemon::saying(404, r#"{"error":"no VM is called gone"}"#)
}

#[test]
fn output_goes_where_it_belongs() {
    assert_eq!(run(&daemon(), &["exec", "web", "echo", "hello"]), is(0, "hello\n", "to stderr\n"));
}

#[test]
fn the_status_is_the_programs() {
    let daemon = daemon();
    for (program, code) in [("exit 0", 0), ("exit 42", 42), ("exit 3", 3), ("die 9", 137), ("die 15", 143)] {
        let arguments: Vec<_> = ["exec", "web"].into_iter().chain(program.split(' ')).collect();
        assert_eq!(run(&daemon, &arguments), is(code, "", ""), "{program}");
    }
}

#[test]
fn a_program_that_is_not_there_is_127_and_one_that_may_not_run_126() {
    let daemon = daemon();
    assert_eq!(run(&daemon, &["exec", "web", "missing"]), is(127, "", "error: web: there is no missing\n"));
    assert_eq!(run(&daemon, &["exec", "web", "denied"]), is(126, "", "error: web: denied is no program\n"));
}

#[test]
fn no_such_vm_is_3() {
    assert_eq!(run(&daemon(), &["exec", "gone", "true"]), is(3, "", "error: no VM is called gone\n"));
}

#[test]
fn an_agent_that_goes_away_is_an_error_and_no_success() {
    assert_eq!(run(&daemon(), &["exec", "web", "vanish"]), is(1, "", "error: the agent of web went away\n"));
}

#[test]
fn what_stands_behind_the_program_is_the_programs() {
    // `-i` and `--help` behind the VM are not ours.
    assert_eq!(run(&daemon(), &["exec", "web", "echo", "--help"]).stdout, "--help\n");
    assert_eq!(run(&daemon(), &["exec", "web", "--", "echo", "-i"]).stdout, "-i\n");
}

#[test]
fn the_environment_is_passed_on() {
    let daemon = daemon();
    let mut command = with(&daemon, &["exec", "-e", "A=1", "-e", "HERE", "web", "env"]);
    let outcome = wait(command.env("HERE", "x y").spawn().unwrap());
    assert_eq!(outcome, is(0, "A=1\nHERE=x y\n", ""));
}

#[test]
fn standard_input_is_passed_on_only_when_asked_for() {
    let daemon = daemon();
    assert_eq!(run_with_stdin(&daemon, &["exec", "-i", "web", "cat"], b"some\ntext".to_vec()), is(0, "some\ntext", ""));
    assert_eq!(run(&daemon, &["exec", "web", "cat"]), is(0, "", ""));
}

#[test]
fn a_program_that_writes_as_it_reads_gets_megabytes_through() {
    // Far more than all buffers between here and there: would hang if one direction waited for the other.
    let bytes = vec![b'x'; 24 << 20];
    let outcome = run_with_stdin(&daemon(), &["exec", "-i", "web", "cat"], bytes.clone());
    assert_eq!((outcome.code, outcome.stdout.len()), (0, bytes.len()));
}

#[test]
fn signals_are_passed_on() {
    let daemon = daemon();
    for (signal, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1), (Signal::QUIT, 3)] {
        let mut child = with(&daemon, &["exec", "web", "wait"]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(wait(child), is(128 + number, "", &format!("got {number}\n")));
    }
}

#[test]
fn a_program_that_takes_too_long_is_ended_and_the_status_is_124() {
    let daemon = daemon();
    let started = Instant::now();
    let outcome = run(&daemon, &["exec", "--timeout", "200ms", "web", "wait"]);
    assert_eq!(outcome, is(124, "ready\n", "got 15\nerror: wait did not end within 200ms\n"));
    assert!(started.elapsed() < Duration::from_secs(1), "it ended on SIGTERM");

    let outcome = run(&daemon, &["exec", "--timeout", "200ms", "web", "stubborn"]);
    assert_eq!(outcome, is(124, "", "got 15\ngot 9\nerror: stubborn did not end within 200ms\n"));
}

#[test]
fn without_a_terminal_here_a_terminal_there_still_works() {
    assert_eq!(run(&daemon(), &["exec", "-it", "web", "tty"]).code, 0);
    assert_eq!(run(&daemon(), &["exec", "web", "tty"]).code, 1);
}

/// A terminal: our end, and the program's.
pub(crate) fn terminal() -> (OwnedFd, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (ours, theirs)
}

fn is_raw(terminal: &OwnedFd) -> bool {
    !rustix::termios::tcgetattr(terminal).unwrap().local_modes.contains(LocalModes::ICANON)
}

#[test]
fn the_terminal_is_raw_while_the_program_runs_and_as_before_afterwards() {
    let daemon = daemon();
    // It ends by itself on what is typed; it is told to end; it never answers when told to.
    for (program, signal, code) in
        [("one-key", None, 0), ("wait", Some(Signal::HUP), 129), ("stubborn", Some(Signal::TERM), 143)]
    {
        let (ours, theirs) = terminal();
        assert!(!is_raw(&theirs));
        let mut exec = with(&daemon, &["exec", "-it", "web", program]);
        let child = exec.stdin(theirs.try_clone().unwrap()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_raw(&theirs) {
            assert!(Instant::now() < deadline, "{program}: the terminal never became raw");
            std::thread::sleep(Duration::from_millis(5));
        }
        match signal {
            None => assert_eq!(rustix::io::write(&ours, b"k").unwrap(), 1),
            Some(signal) => kill_process(Pid::from_child(&child), signal).unwrap(),
        }
        assert_eq!(wait(child).code, code, "{program}");
        assert!(!is_raw(&theirs), "{program}");
    }
}

#[test]
fn three_interrupts_end_the_wait_for_a_program_that_ignores_them() {
    let daemon = daemon();
    let child = with(&daemon, &["exec", "web", "stubborn", "and", "ready"]).spawn().unwrap();
    let mut child = child;
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    for _ in 0..3 {
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        // Signals of one kind that arrive together are one.
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(wait(child).code, 130);
}
