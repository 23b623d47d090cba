//! The laws of saved state, written once.

/// Checks that a chip's state tells all there is to tell: `device_contract!(name, new: …, change: …, restore: …)`.
///
/// `new` makes the chip, `change` does something to it that a fork's child must know of, `restore` makes a chip from a
/// state. The chip's own `state()` is what is saved.
macro_rules! device_contract {
    ($name:ident, new: $new:expr, change: $change:expr, restore: $restore:expr) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            #[test]
            fn a_change_shows_in_the_saved_state() {
                let mut chip = $new;
                let before = chip.state();
                ($change)(&mut chip);
                assert_ne!(chip.state(), before);
            }

            #[test]
            fn restoring_brings_back_the_saved_state() {
                let mut chip = $new;
                ($change)(&mut chip);
                let saved = chip.state();
                assert_eq!(($restore)(saved.clone()).state(), saved);
            }

            #[test]
            fn a_saved_state_survives_being_stored() {
                let mut chip = $new;
                ($change)(&mut chip);
                let saved = chip.state();
                let stored = postcard::to_stdvec(&saved).unwrap();
                let mut loaded = chip.state();
                loaded.clone_from(&postcard::from_bytes(&stored).unwrap());
                assert_eq!(loaded, saved);
            }

            #[test]
            fn a_fork_and_its_parent_part_ways() {
                let mut parent = $new;
                let saved = parent.state();
                let child = ($restore)(saved.clone());
                ($change)(&mut parent);
                assert_eq!(child.state(), saved);
                assert_ne!(parent.state(), saved);
            }
        }
    };
}
pub(crate) use device_contract;
