//! What every `--help` says, pinned in `tests/cli/golden/`. After a change that is meant: `UPDATE_GOLDEN=1`.

use crate::pando::{command, wait};
use std::fs;
use std::path::Path;

const COMMANDS: [&str; 45] = [
    "",
    "run",
    "fork",
    "checkpoint",
    "checkpoint create",
    "checkpoint ls",
    "checkpoint inspect",
    "checkpoint rm",
    "checkpoint export",
    "checkpoint import",
    "checkpoint push",
    "checkpoint pull",
    "checkpoint verify",
    "checkpoint gc",
    "ls",
    "tree",
    "inspect",
    "exec",
    "ssh",
    "logs",
    "cp",
    "port",
    "net",
    "pause",
    "resume",
    "hibernate",
    "wake",
    "stop",
    "start",
    "rm",
    "images",
    "events",
    "config",
    "config ls",
    "config get",
    "config set",
    "config unset",
    "doctor",
    "machine",
    "machine start",
    "machine stop",
    "machine status",
    "machine run",
    "daemon",
    "completions",
];

fn help(name: &str) -> String {
    let arguments: Vec<_> = name.split_whitespace().chain(["--help"]).collect();
    let outcome = wait(command(&arguments).spawn().unwrap());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    outcome.stdout
}

#[test]
fn help_says_what_the_golden_files_say() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/golden");
    for name in COMMANDS {
        let file = if name.is_empty() { "pando".to_owned() } else { name.replace(' ', "-") };
        let path = golden.join(format!("{file}.txt"));
        let help = help(name);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&golden).unwrap();
            fs::write(&path, &help).unwrap();
        }
        let expected = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(help, expected, "{}", path.display());
    }
}

#[test]
fn help_has_examples_fits_80_columns_and_hides_what_is_not_for_people() {
    for name in COMMANDS {
        let help = help(name);
        assert!(help.contains("Examples:"), "{name}");
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{name}: {help}");
        assert!(!help.contains("vmm"), "{name}");
    }
}

#[test]
fn no_command_is_left_out_of_the_golden_files() {
    let known = |name: &str| COMMANDS.contains(&name) || name == "help";
    for group in ["", "machine ", "checkpoint "] {
        let help = help(group.trim());
        let (_, list) = help.split_once("Commands:\n").unwrap();
        let names = list.lines().take_while(|line| !line.is_empty());
        // What a command does may go on in a line of its own.
        let names = names.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        for name in names.filter_map(|line| line.split_whitespace().next()) {
            assert!(known(&format!("{group}{name}")) || name == "help", "{group}{name}");
        }
    }
}

#[test]
fn completions_are_scripts_and_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = wait(command(&["completions", shell]).spawn().unwrap());
        assert!(script.code == 0 && script.stdout.contains("COMPLETE"), "{script:?}");
    }
}
