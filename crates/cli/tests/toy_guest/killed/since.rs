//! The same of a save that takes over what an earlier one stored: that stays whole, whoever dies, and the next save is right.

use super::{End, children, kill, kills, sweep};
use crate::instant::wait_for_laps;
use crate::since::{RECORDER, assert_whole, layers, recorder};
use crate::{LIMIT, PANDO};
use pando_bench::{Monitor, Witness};
use pando_store::Store;
use std::process::Child;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::{Duration, Instant};

/// How many saves are killed when that is not set, a process of each in turn.
const FEW_KILLS: u32 = 12;
/// So much of the memory is told of each time that a teller is killed while it does.
const GUEST: Witness = Witness { pages: 1024, ..RECORDER };

/// Who dies.
#[derive(Debug, Clone, Copy)]
enum Victim {
    /// The process that writes into the store.
    Saver,
    /// The seed's copy of itself, which tells it everything.
    Teller,
    /// The earlier seed, whose page tables are looked at.
    Earlier,
}

const VICTIMS: [Victim; 3] = [Victim::Saver, Victim::Teller, Victim::Earlier];

#[test]
fn a_save_that_is_killed_leaves_the_one_whole_that_it_takes_from_and_the_next_one_is_right() {
    let Some(parent) = recorder(GUEST) else { return };
    let (dir, kills) = (tempfile::tempdir().unwrap(), kills(FEW_KILLS).next_multiple_of(VICTIMS.len() as u32));
    let next_seed = || {
        wait_for_laps(&parent, GUEST, 1, LIMIT); // So that there is something new to be stored.
        parent.seed().unwrap()
    };
    let (mut earlier, mut name) = (next_seed(), "s0".to_owned());
    earlier.save(PANDO.as_ref(), dir.path(), &name).unwrap();
    let (seed, start) = (next_seed(), Instant::now());
    seed.save_since(&earlier.as_earlier(&name).unwrap(), PANDO.as_ref(), dir.path(), "timed").unwrap();
    let took = start.elapsed();
    let store = Store::open(dir.path()).unwrap();
    store.remove("timed").unwrap();
    let (mut whole, ended) = ([0; VICTIMS.len()], AtomicBool::new(false));
    thread::scope(|scope| {
        let sweeper = scope.spawn(|| sweep(dir.path(), &ended));
        let end = End(&ended);
        for kill in 0..kills {
            let victim = kill as usize % VICTIMS.len();
            let before = earlier.as_earlier(&name).unwrap();
            let had = layers(dir.path(), &name);
            let (seed, killed) = (next_seed(), format!("k{kill}"));
            let moment = took * (kill / VICTIMS.len() as u32) / (kills / VICTIMS.len() as u32);
            let saving = seed.start_saving_since(Some(&before), PANDO.as_ref(), dir.path(), &killed).unwrap();
            strike(&earlier, &seed, saving, moment, VICTIMS[victim]);
            assert_eq!((layers(dir.path(), &name), store.verify().unwrap().damage.len()), (had, 0));
            if store.checkpoints().unwrap().contains(&killed) {
                whole[victim] += 1;
                assert_whole(&seed, dir.path(), &killed);
                store.remove(&killed).unwrap();
            }
            let next = format!("s{}", kill + 1);
            seed.save_since(&before, PANDO.as_ref(), dir.path(), &next).unwrap();
            assert_whole(&seed, dir.path(), &next);
            store.remove(&name).unwrap();
            (earlier, name) = (seed, next);
            assert_eq!(store.checkpoints().unwrap(), [name.as_str()]);
        }
        drop(end);
        assert!(sweeper.join().unwrap() > 0);
    });
    println!("of {kills} saves {whole:?} were whole when one of {VICTIMS:?} was killed");
    let each = kills / VICTIMS.len() as u32;
    assert!(whole[0] < each && whole[1] < each, "kills came in the middle of it: {whole:?}");
    assert_eq!(whole[2], each, "an earlier seed that dies takes nothing along");
}

/// Kills one of those at work so long after the beginning, and waits for the end of it.
fn strike(earlier: &Monitor, seed: &Monitor, mut saving: Child, moment: Duration, victim: Victim) {
    let (earlier, seed) = (earlier.pid().unwrap(), seed.pid().unwrap());
    thread::sleep(moment);
    let pids = match victim {
        Victim::Saver => vec![saving.id()],
        Victim::Teller => children(seed),
        Victim::Earlier => vec![earlier],
    };
    pids.into_iter().for_each(kill);
    saving.wait().unwrap();
}
