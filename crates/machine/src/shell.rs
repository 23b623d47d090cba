//! Quoting for POSIX shells.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Appends `word` so that a shell reads it as one word, whatever it contains.
pub(crate) fn quote(word: &OsStr, script: &mut Vec<u8>) {
    script.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            byte => script.push(byte),
        }
    }
    script.push(b'\'');
}

/// Whether a shell can have a variable of this name.
pub(crate) fn is_variable(name: &OsStr) -> bool {
    let name = name.as_bytes();
    name.first().is_some_and(|first| !first.is_ascii_digit())
        && name.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        for word in ["", "plain", "two words", "it's", "$HOME `id` \\ \" \n end", "''"] {
            let mut script = b"printf %s ".to_vec();
            quote(OsStr::new(word), &mut script);
            let output = Command::new("sh").arg("-c").arg(OsStr::from_bytes(&script)).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn only_names_are_variables() {
        assert!(is_variable(OsStr::new("_A1")));
        for wrong in ["", "1A", "A-B", "A B", "BASH_FUNC_f%%"] {
            assert!(!is_variable(OsStr::new(wrong)), "{wrong}");
        }
    }
}
