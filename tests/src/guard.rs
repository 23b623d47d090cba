//! Ends what a test started, however the test ends.

use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits until nobody can write to its standard input any more, which also happens when a test is killed. Then removes
/// the daemon's VMs in the proper way, ends its processes, which have its folder in their environment, and removes
/// its files. It has another variable's name for that folder, so as not to end itself.
const SCRIPT: &str = r#"
cat >/dev/null
names=$(timeout 30 "$PANDO" ls -q 2>/dev/null) && [ -n "$names" ] && timeout 120 "$PANDO" rm -f $names >/dev/null 2>&1
processes() {
  for process in /proc/[0-9]*; do
    tr '\0' '\n' <"$process/environ" 2>/dev/null | grep -qxF "PANDO_RUNTIME_DIR=$FOLDER/run" && echo "${process#/proc/}"
  done
}
for signal in TERM KILL; do
  found=$(processes)
  [ -z "$found" ] && break
  kill -s "$signal" $found 2>/dev/null
  for _ in 1 2 3 4 5 6 7 8 9 10; do [ -z "$(processes)" ] && break; sleep 0.2; done
done
rm -rf "$FOLDER"
"#;

/// Its drop waits until all is gone. That of a static never happens; then the end of the process does it.
#[derive(Debug)]
pub(crate) struct Guard(Child);

impl Guard {
    /// Guards the daemon of `folder` that `pando` talks to at `host`.
    pub(crate) fn new(folder: &Path, pando: &Path, host: &str) -> Self {
        let script = Command::new("setsid")
            .args(["sh", "-c", SCRIPT])
            .env("FOLDER", folder)
            .env("PANDO", pando)
            .env("PANDO_HOST", host)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(script.unwrap_or_else(|error| panic!("cannot start setsid sh: {error}")))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
