//! What the README shows is what happens.
//!
//! Its blocks marked `console` are one session: their lines behind a `$` run in the order of the file, each with exit
//! status 0, in a folder with a `rootfs`. Where output is shown it must come, standard error behind standard output;
//! only a `…` and a number with a unit stand for anything.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use pando_tests::{Run, TestDaemon, rootfs};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const README: &str = include_str!("../../README.md");
/// For one line. A boot in an emulated computer is the longest: the daemon waits for it for 300 s.
const LIMIT: Duration = Duration::from_secs(330);
const UNITS: [&str; 7] = ["µs", "ms", "s", "B", "KiB", "MiB", "GiB"];

/// A command of the README, and what it shows of its output.
#[derive(Debug, PartialEq)]
struct Step {
    line: usize,
    command: String,
    output: Vec<String>,
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn the_session_in_the_readme_goes_as_shown() {
    let daemon = TestDaemon::start();
    let folder = daemon.folder().join("readme");
    rootfs::build(&folder.join("rootfs"));
    let shell = |step: &Step| Run::of(&mut shell(&daemon, &folder, &step.command), &[], LIMIT);
    for step in steps(README) {
        let Step { line, command, output } = &step;
        eprintln!("README.md:{line}: {command}");
        let run = shell(&step);
        assert_eq!(run.code, 0, "README.md:{line}: {command}\n{}{}", run.stdout, run.stderr);
        let came = format!("{}{}", run.stdout, run.stderr);
        assert!(output.is_empty() || is_as_shown(output, &came), "README.md:{line}: {command} printed\n{came}");
    }
}

#[test]
#[ignore = "needs a built pando: make test"]
fn the_readme_leaves_no_command_out() {
    let help = TestDaemon::shared().pando(&["--help"]).ok();
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let commands = list.lines().take_while(|line| !line.is_empty()).map(|line| line.split_whitespace().next().unwrap());
    let missing: Vec<_> =
        commands.filter(|&name| name != "help" && !README.contains(&format!("pando {name}"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_session_is_read_with_its_output_and_other_blocks_are_left_alone() {
    let text = "```sh\nmake demo\n```\n```console\n$ pando ls -q\nweb\n\n$ pando rm web\n```\n$ no\n";
    let step = |line, command: &str, output: &[&str]| Step {
        line,
        command: command.into(),
        output: output.iter().map(|&line| line.into()).collect(),
    };
    assert_eq!(steps(text), [step(5, "pando ls -q", &["web"]), step(8, "pando rm web", &[])]);
}

#[test]
fn only_figures_and_gaps_stand_for_anything() {
    let shown = ["web.1".to_owned(), "paused 1.2 ms, … shared 8 MiB".to_owned()];
    assert!(is_as_shown(&shown, "web.1\npaused 870 µs, seen as 3 s, shared 1.5 GiB\n"));
    assert!(!is_as_shown(&shown, "web.2\npaused 870 µs, seen as 3 s, shared 1.5 GiB\n"));
    assert!(!is_as_shown(&shown, "web.1\npaused 870 µs\n"));
    assert!(!is_as_shown(&shown, "web.1\npaused 1.2 ms, shared 8 MiB\nmore\n"));
}

#[test]
fn every_test_that_the_page_on_forks_names_exists() {
    let mut sources = String::new();
    for folder in ["../crates", "../tests"] {
        read_sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut sources);
    }
    let words = include_str!("../../docs/fork.md").split('`').skip(1).step_by(2);
    let names: Vec<_> = words.filter(|word| word.matches('_').count() > 3).collect();
    assert!(names.len() > 20, "{names:?}");
    let missing: Vec<_> = names.into_iter().filter(|name| !sources.contains(&format!("fn {name}()"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

fn read_sources(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// `command` in a shell for which `pando` is the one under test, at this daemon.
fn shell(daemon: &TestDaemon, folder: &Path, command: &str) -> Command {
    let pando = daemon.command::<&str>(&[]);
    let bin = folder.join("bin");
    if !bin.exists() {
        fs::create_dir_all(&bin).unwrap();
        symlink(pando.get_program(), bin.join("pando")).unwrap();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("bash");
    shell.args(["-o", "pipefail", "-c", command]).current_dir(folder);
    shell.env("PATH", format!("{}:{path}", bin.display()));
    shell.envs(pando.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}

fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_session = false;
    for (index, line) in text.lines().enumerate() {
        if let Some(kind) = line.strip_prefix("```") {
            is_session = kind == "console";
        } else if !is_session || line.is_empty() {
            // Prose, another block, or a gap between two commands.
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: index + 1, command: command.to_owned(), output: Vec::new() });
        } else {
            steps.last_mut().expect("a session begins with a command").output.push(line.to_owned());
        }
    }
    steps
}

fn is_as_shown(shown: &[String], came: &str) -> bool {
    let came: Vec<_> = came.lines().filter(|line| !line.is_empty()).collect();
    shown.len() == came.len() && shown.iter().zip(came).all(|(shown, came)| matches(&plain(shown), &plain(came)))
}

/// `line` with one space between words, and `…` for each number with a unit.
fn plain(line: &str) -> String {
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        let is_unit = UNITS.contains(&word.trim_end_matches(','));
        match words.last_mut() {
            Some(last) if is_unit && last.parse::<f64>().is_ok() => *last = "…",
            _ => words.push(word),
        }
    }
    words.join(" ")
}

/// Whether `text` is `pattern`, in which `…` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('…') else { return pattern == text };
    let Some(mut text) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<_> = rest.split('…').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some(at) = text.find(piece) else { return false };
        text = &text[at + piece.len()..];
    }
    text.ends_with(last)
}
