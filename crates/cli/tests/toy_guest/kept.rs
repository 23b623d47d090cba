//! The fork-point oracle for checkpoints: a guest that never rests is kept, and a VM from the seed and one from the store,
//! when the seed is gone, are of one instant and of the same.

use crate::checkpoint::{ALL, WITNESS, next_laps, restore, save};
use crate::instant::{boot, wait_for_laps};
use crate::moments::Moments;
use crate::{LIMIT, PANDO};
use pando_bench::serve;

const CHECKPOINTS: usize = 24;

#[test]
fn memory_registers_and_disk_of_a_vm_from_a_checkpoint_are_of_one_instant_also_without_its_seed() {
    let Some(mut parent) = boot(WITNESS) else { return };
    let (dir, mut moments) = (tempfile::tempdir().unwrap(), Moments::new());
    for number in 1..=CHECKPOINTS {
        moments.pass();
        let seed = parent.seed().unwrap();
        let name = format!("c{number}");
        save(&seed, dir.path(), &name); // The parent goes on meanwhile.
        let (_, warm) = seed.fork(1).unwrap();
        wait_for_laps(&warm[0].monitor, WITNESS, ALL, LIMIT);
        let next = next_laps(&warm[0].monitor, WITNESS);
        drop((warm, seed));

        let cold = restore(serve(PANDO.as_ref(), dir.path(), &name).unwrap().connections).unwrap();
        wait_for_laps(&cold, WITNESS, ALL, LIMIT);
        assert_eq!(next_laps(&cold, WITNESS), next, "checkpoint {number}: both go on from its instant");
        // And back: what they wrote is not the parent's.
        wait_for_laps(&parent, WITNESS, if number % 4 == 0 { ALL } else { 1 }, LIMIT);
        if number % 6 == 0 {
            cold.gather().unwrap();
            parent = cold; // Checkpoints of what was woken.
        }
    }
}
