//! Linux guests and the daemon: what was synced in one, and what was said to be stored.

use crate::{Disk, LINUX_EACH, cuts, moment};
use pando_tests::{Run, rootfs};
use std::time::Duration;

/// The daemon's state lies on the disk that loses its power.
const BEGIN: &str = r#"
export PANDO_STATE_DIR=/tmp/disk/state PANDO_RUNTIME_DIR=/run/pt PANDO_HOST=unix:///run/pt.sock
"$PANDO_BINARY" daemon --socket /run/pt.sock &
until "$PANDO_BINARY" ls -q >/dev/null 2>&1; do sleep 0.2; done
"#;
const UNTIL_THE_CUT: &str = r#"
"$PANDO_BINARY" run --name parent --memory 256M rootfs >&2
"$PANDO_BINARY" exec parent sh -c 'echo old > /data/old; sync'
"$PANDO_BINARY" fork parent --name child >&2
"$PANDO_BINARY" exec child fsyncer write /data/log 1000000 | while read -r number; do
  echo "$number"
  [ "$number" != 60 ] || echo PANDO-CUT-POWER
done
"#;
const AFTER_THE_CUT: &str = r#"
[ "$("$PANDO_BINARY" ls -q --running)" = "" ]
"$PANDO_BINARY" start child parent >&2
[ "$("$PANDO_BINARY" exec child cat /data/old)" = old ]
[ "$("$PANDO_BINARY" exec parent cat /data/old)" = old ]
"$PANDO_BINARY" exec child fsyncer check /data/log "$DURABLE"
"$PANDO_BINARY" fork child --name grandchild >&2
"$PANDO_BINARY" exec grandchild fsyncer check /data/log "$DURABLE"
"$PANDO_BINARY" stop --timeout 60s grandchild child parent >&2
"#;
/// `STORED` are the names of checkpoints that were said to be stored. Each is the VM at one instant: the same number in its
/// memory and on its disk, which is its name's end.
const CHECKPOINTS_ARE_WHOLE: &str = r#"
pando() { "$PANDO_BINARY" "$@"; }
pando checkpoint verify >&2
for name in $STORED; do
  pando checkpoint inspect "$name" | grep -q '^state *stored$' || { pando checkpoint ls >&2; exit 1; }
done
for name in $(pando checkpoint ls -q); do
  case " $STORED " in *" $name "*) continue;; esac
  pando checkpoint inspect "$name" | grep -qE '^state *(stored|failed)$' || { pando checkpoint inspect "$name" >&2; exit 1; }
done
for vm in $(pando ls -q); do pando rm -f "$vm" >&2; done
last=${STORED##* }
if [ -n "$last" ]; then
  pando run --from "$last" --name vm >&2
  [ "$(pando exec vm cat /tmp/number /data/number)" = "${last#c}
${last#c}" ]
  pando exec vm sha256sum -c /data/sum >&2
fi
"#;
/// Checkpoints come and go, and what nobody needs is swept, until the power is cut: `DELAY` seconds after the beginning, or,
/// each other time, after the first of them is stored.
const CHECKPOINTS_UNTIL_THE_CUT: &str = r#"
[ -n "$last" ] || pando run --name vm --memory 128M rootfs >&2
cut() { (sleep "$DELAY"; echo PANDO-CUT-POWER) & }
[ $((ROUND % 2)) = 1 ] || cut
while pando checkpoint gc >&2; do :; done && echo "gc failed" &
number=$((ROUND * 1000))
older=
while :; do
  number=$((number + 1))
  pando exec vm sh -c "echo $number > /tmp/number; echo $number > /data/number
    head -c 3000000 /dev/urandom > /data/blob; sha256sum /data/blob > /data/sum"
  pando checkpoint create vm "c$number" --wait >&2
  echo "stored c$number"
  [ -n "$older" ] || [ $((ROUND % 2)) = 0 ] || cut
  if [ -n "$older" ]; then
    echo "removing $older"
    pando checkpoint rm "$older" >&2
  fi
  older=c$number
done
"#;

#[test]
#[ignore = "needs a Linux guest: make test"]
fn what_a_forked_guest_synced_survives_a_power_cut_of_the_host() {
    let disk = disk();

    let cut = run(&disk, UNTIL_THE_CUT, &[]);
    assert_eq!(cut.code, 137, "the power was not cut: {cut:?}");
    let durable: u64 = cut.stdout.lines().filter_map(|line| line.parse().ok()).next_back().unwrap_or_default();
    assert!(durable >= 60, "{cut:?}");
    println!("{durable} records were durable");

    run(&disk, AFTER_THE_CUT, &[("DURABLE", durable.to_string())]).ok();
}

#[test]
#[ignore = "needs a Linux guest: make test"]
fn checkpoints_that_were_stored_survive_power_cuts_of_the_host_and_half_written_ones_are_not_offered() {
    let cuts = cuts().div_ceil(LINUX_EACH);
    let disk = disk();
    let mut stored: Vec<String> = Vec::new();
    for round in 1..=cuts {
        // Up to the time that two of them take.
        let delay = moment(Duration::from_secs(20)).as_secs_f64();
        let variables = [("STORED", stored.join(" ")), ("ROUND", round.to_string()), ("DELAY", format!("{delay:.2}"))];
        let script = format!("{CHECKPOINTS_ARE_WHOLE}{CHECKPOINTS_UNTIL_THE_CUT}");
        let cut = run(&disk, &script, &variables);
        assert_eq!(cut.code, 137, "the power was not cut: {cut:?}");
        for line in cut.stdout.lines() {
            match line.split_once(' ') {
                Some(("stored", name)) => stored.push(name.to_owned()),
                // Whether it was is not known, and either is right.
                Some(("removing", name)) => stored.retain(|known| known != name),
                _ => assert_ne!(line, "gc failed", "{cut:?}"),
            }
        }
        println!("cut {round} after {delay:.2} s: {stored:?}");
    }
    assert!(!stored.is_empty(), "there is something to look for");
    let variables = [("STORED", stored.join(" "))];
    run(&disk, CHECKPOINTS_ARE_WHOLE, &variables).ok();
}

/// An empty disk, and beside it what guests begin from.
fn disk() -> Disk {
    let disk = Disk::new();
    rootfs::build(&disk.folder().join("rootfs"));
    disk
}

/// Runs a script that has a daemon, in an emulated host with that disk.
fn run(disk: &Disk, script: &str, variables: &[(&str, String)]) -> Run {
    disk.run(3072, "0.3", &format!("{BEGIN}{script}"), variables)
}
