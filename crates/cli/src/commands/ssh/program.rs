//! What runs at the end of a session: in a guest of which no more is known than that it has a shell.

use pando_wire::agent::{Exec, WindowSize};
use std::collections::BTreeMap;

/// Runs what `$2` says, as `$1` says, as an SSH server would: at home, by the user's own shell. Some images have no list of
/// users, some users no home.
const LOGIN: &str = r#"
cd "$HOME" 2>/dev/null
shell= id=$(id -u)
while IFS=: read -r name _ number _ _ _ program; do
  if [ "$number" = "$id" ]; then USER=$name LOGNAME=$name shell=$program; export USER LOGNAME; break; fi
done 2>/dev/null </etc/passwd
[ -x "$shell" ] || shell=/bin/sh
export SHELL="$shell"
case $1 in
  shell) exec "$shell" -l ;;
  command) exec "$shell" -c "$2" ;;
esac
for server in /usr/lib/openssh /usr/lib/ssh /usr/libexec/openssh /usr/libexec; do
  [ -x "$server/sftp-server" ] && exec "$server/sftp-server"
done
echo "the image has no sftp-server" >&2
exit 127
"#;

/// What a client can have run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// The user's shell.
    Shell,
    /// This, by the user's shell.
    Command(String),
    /// The server of `sftp` and `scp`.
    Sftp,
}

impl Program {
    /// As the agent is told to run it.
    pub(super) fn exec(self, user: String, env: BTreeMap<String, String>, terminal: Option<WindowSize>) -> Exec {
        let (kind, command) = match self {
            Self::Shell => ("shell", String::new()),
            Self::Command(command) => ("command", command),
            Self::Sftp => ("sftp", String::new()),
        };
        let argv = ["/bin/sh", "-c", LOGIN, "pando-ssh", kind, &command].map(str::to_owned).into();
        Exec { argv, env, cwd: None, user: Some(user), terminal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn run(program: Program, home: &str) -> (String, String) {
        let exec = program.exec("root".into(), BTreeMap::new(), None);
        let mut command = Command::new(&exec.argv[0]);
        let ran = command.args(&exec.argv[1..]).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home);
        let output = ran.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    }

    #[test]
    fn a_command_runs_at_home_as_it_was_typed_and_knows_who_it_is() {
        let home = tempfile::tempdir().unwrap();
        let home = home.path().to_str().unwrap();
        let typed = r#"pwd; echo "$SHELL" '$HOME' "it's"; id -un | grep -qx "$USER" && echo same"#;
        let (stdout, stderr) = run(Program::Command(typed.into()), home);
        let lines: Vec<_> = stdout.lines().collect();
        assert_eq!((lines[0], lines[2], stderr.as_str()), (home, "same", ""));
        assert!(lines[1].ends_with(" $HOME it's"), "{lines:?}");
    }

    #[test]
    fn a_home_that_is_not_there_keeps_nobody_out() {
        assert_eq!(run(Program::Command("echo in".into()), "/no/such/home"), ("in\n".into(), String::new()));
    }
}
