//! Names of VMs: which are possible, and making some up.

use super::error::FleetError;
use uuid::Uuid;

/// The longest name.
const MAX_LEN: usize = 63;

/// Whether a VM could be called so, or it is an id.
pub(crate) fn is_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let begins_well = name.bytes().next().is_some_and(|byte| is_inner(byte) && byte.is_ascii_alphanumeric());
    begins_well && name.len() <= MAX_LEN && name.bytes().all(is_inner)
}

/// Checks a name that somebody chose.
pub(crate) fn check(name: &str) -> Result<(), FleetError> {
    if !is_name(name) {
        return Err(FleetError::Invalid(format!(
            "{name:?} cannot be a name: 1 to {MAX_LEN} of a-z, 0-9, - and . can, beginning with a letter or digit"
        )));
    }
    // Whatever a VM is called by, it is one VM.
    if Uuid::try_parse(name).is_ok() {
        return Err(FleetError::Invalid(format!("{name} cannot be a name: it looks like an id")));
    }
    Ok(())
}

/// A name for a VM that nobody named, from its id.
pub(crate) fn made_up(id: Uuid, is_taken: impl Fn(&str) -> bool) -> String {
    const HOW: [&str; 16] = [
        "amber", "bold", "calm", "dewy", "early", "fair", "green", "high", "keen", "light", "mild", "proud", "quiet",
        "rapid", "still", "tall",
    ];
    const WHAT: [&str; 16] = [
        "aspen", "birch", "cedar", "dune", "elm", "fern", "grove", "hazel", "larch", "maple", "oak", "pine", "reed",
        "sage", "thorn", "willow",
    ];
    // The end of a UUIDv7 is random.
    let random = id.as_bytes();
    let word = |list: [&'static str; 16], byte: u8| list[usize::from(byte % 16)];
    let pair = format!("{}-{}", word(HOW, random[15]), word(WHAT, random[14]));
    if !is_taken(&pair) {
        return pair;
    }
    (u64::from(u16::from_le_bytes([random[13], random[12]]))..)
        .map(|number| format!("{pair}-{number:x}"))
        .find(|name| !is_taken(name))
        .unwrap_or(pair)
}

/// A name for a child that nobody named: `parent.1`, or the next number that is free. Begins to count at `*next`, and
/// leaves there where to go on.
pub(crate) fn of_child(parent: &str, next: &mut u64, is_taken: impl Fn(&str) -> bool) -> String {
    loop {
        let suffix = format!(".{next}");
        *next += 1;
        // Names are ASCII, so any cut is between characters.
        let stem = parent.get(..MAX_LEN.saturating_sub(suffix.len())).unwrap_or(parent);
        let name = format!("{stem}{suffix}");
        if !is_taken(&name) {
            return name;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_lower_case_and_no_id() {
        for good in ["a", "base", "base.1.2", "7-x", &"x".repeat(63)] {
            assert!(check(good).is_ok(), "{good}");
        }
        let id = Uuid::now_v7().to_string();
        for bad in ["", "-a", ".a", "A", "a_b", "a/b", "a b", "ä", &"x".repeat(64), &id, &id.replace('-', "")] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_child_gets_the_next_free_number_and_a_possible_name() {
        let taken = |name: &str| name == "base.2";
        let mut next = 1;
        let names: Vec<_> = (0..3).map(|_| of_child("base", &mut next, taken)).collect();
        assert_eq!(names, ["base.1", "base.3", "base.4"]);

        let long = of_child(&"x".repeat(63), &mut 250, |_| false);
        assert_eq!(long.len(), 63);
        assert!(check(&long).is_ok());
    }

    #[test]
    fn a_made_up_name_is_possible_and_free() {
        let id = Uuid::now_v7();
        let first = made_up(id, |_| false);
        let second = made_up(id, |name| name == first);
        assert!(check(&first).is_ok() && check(&second).is_ok());
        assert_ne!(first, second);
    }
}
