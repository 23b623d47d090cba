//! A project that is cloned from outside.

use super::{at, base, timed};
use pando_tests::TestDaemon;
use pando_tests::world::{WORLD, World};
use std::process::Command;

/// Where git listens in the world.
const GIT: u16 = 9418;

#[test]
#[ignore = "needs a Linux guest: make test"]
fn git_clones_from_the_outside() {
    let world = World::make();
    let folder = TestDaemon::shared().folder().join("projects");
    let project = folder.join("project");
    std::fs::create_dir_all(&project).unwrap();
    let make = "git init -q -b main . && for i in $(seq 200); do seq $i $((i * 20)) > file$i; done && git add . && \
                git -c user.name=test -c user.email=test@localhost commit -qm all && git rev-parse HEAD";
    let made = Command::new("sh").args(["-c", make]).current_dir(&project).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    world.serve(at(GIT), move || {
        let mut git = Command::new("git");
        git.args(["daemon", "--inetd", "--export-all"]).arg(format!("--base-path={}", folder.display()));
        git
    });

    let vm = base().fork();
    timed("clone", || vm.sh(&format!("git clone -q git://{WORLD}/project /srv/project")));
    assert_eq!(
        vm.sh("cd /srv/project && git fsck --full 2>&1 && git rev-parse HEAD"),
        String::from_utf8_lossy(&made.stdout).trim()
    );
    assert_eq!(vm.sh("ls /srv/project | wc -l"), "200");
}
