//! A script for the emulated host: every test program in one boot.

use crate::cargo::Program;
use std::path::Path;

/// A test program, and how it is called.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) program: &'a Program,
    pub(crate) args: Vec<String>,
}

/// How long one test program may take, in seconds: one that hangs is named, and those behind it still run.
const LIMIT_SECONDS: u32 = 2400;

/// Runs all, one after the other, and fails when one of them did, having named those that did.
pub(crate) fn script(jobs: &[Job], variables: &[(&str, &Path)]) -> String {
    let mut text = String::from("failed=\n");
    for (name, value) in variables {
        text.push_str(&format!("export {name}={}\n", quoted(&value.to_string_lossy())));
    }
    for job in jobs {
        let name = &job.program.name;
        let words = job.args.iter().map(|word| format!(" {}", quoted(word))).collect::<String>();
        text.push_str(&format!("echo '--- {name}'\n"));
        text.push_str(&format!(
            "start=$SECONDS\ntimeout --kill-after 30 {LIMIT_SECONDS} {}{words} || failed=\"$failed {name} ($?)\"\n",
            quoted(&job.program.path.to_string_lossy())
        ));
        text.push_str(&format!("echo \"--- {name}: $((SECONDS - start)) s\"\n"));
    }
    text.push_str("[ -z \"$failed\" ] || { echo \"failed:$failed\"; exit 1; }\n");
    text
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(programs: &[(&str, &str, &[&str])]) -> (bool, String) {
        let programs: Vec<_> = programs
            .iter()
            .map(|(name, path, args)| (Program { name: (*name).into(), kind: "test".into(), path: path.into() }, args))
            .collect();
        let job = |(_, args): &(Program, &&[&str])| args.iter().map(|&arg| arg.to_owned()).collect::<Vec<_>>();
        let jobs: Vec<_> = programs.iter().map(|entry| Job { program: &entry.0, args: job(entry) }).collect();
        let text = script(&jobs, &[("WORD", Path::new("it's"))]);
        let output = Command::new("bash").args(["-c", &text]).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    }

    #[test]
    fn one_program_that_fails_fails_all_and_the_others_run() {
        let (well, text) = run(&[("first", "/bin/false", &[]), ("second", "/bin/echo", &["a b", "'"])]);
        assert!(!well);
        assert!(text.contains("a b '") && text.ends_with("failed: first (1)\n"), "{text}");
    }

    #[test]
    fn programs_that_succeed_get_their_variables_and_succeed_together() {
        let (well, text) = run(&[("one", "/bin/sh", &["-c", "echo \"<$WORD>\""])]);
        assert!(well && text.contains("<it's>"), "{text}");
    }
}
