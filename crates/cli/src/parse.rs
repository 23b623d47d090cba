//! What is typed on a command line, as values.

use clap::builder::NonEmptyStringValueParser;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A size in bytes: `512M`, `4G`, `1.5GiB`, `1048576`. The units are binary.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size such as 512M or 4G");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let unit = 1_u64 << shift;
    if let Ok(number) = digits.parse::<u64>() {
        return number.checked_mul(unit).ok_or_else(wrong);
    }
    let (whole, decimals) = digits.split_once('.').ok_or_else(wrong)?;
    let all_digits = decimals.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits || decimals.is_empty() || decimals.len() > 6 {
        return Err(wrong());
    }
    let whole = whole.parse::<u64>().map_err(|_| wrong())?.checked_mul(unit).ok_or_else(wrong)?;
    let parts = 10_u128.pow(decimals.len() as u32); // At most 6.
    let rest = u128::from(decimals.parse::<u64>().map_err(|_| wrong())?) * u128::from(unit) / parts;
    u64::try_from(rest).ok().and_then(|rest| whole.checked_add(rest)).ok_or_else(wrong)
}

/// The least and the most RAM of a VM, in bytes.
const MEMORY: std::ops::RangeInclusive<u64> = 128 << 20..=64 << 30;

/// A size that a VM's RAM can have.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    let bytes = size(text)?;
    if MEMORY.contains(&bytes) { Ok(bytes) } else { Err(format!("{text} is not in 128M to 64G")) }
}

/// The name of something that there is. An empty one is what a shell makes of a variable that is not set.
pub(crate) fn name() -> NonEmptyStringValueParser {
    NonEmptyStringValueParser::new()
}

/// A duration: `500ms`, `5s`, `2m`, `1h`; seconds without a unit.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    pando_wire::duration::parse(text)
}

/// How long a VM may be idle, in milliseconds: a duration, or `off`, which the API calls 0.
pub(crate) fn idle_timeout(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    match duration(text).map(|duration| u64::try_from(duration.as_millis())) {
        Ok(Ok(ms)) if ms > 0 => Ok(ms),
        _ => Err(format!("{text:?} is neither off nor a duration such as 10m")),
    }
}

/// A variable: `NAME=VALUE`, or `NAME` with the value that this program's environment has.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => {
            (text, std::env::var(text).map_err(|_| format!("{text:?} has no =, and no such variable is set here"))?)
        }
    };
    if name.is_empty() || name.contains('\0') || value.contains('\0') {
        return Err(format!("{text:?} is not NAME=VALUE"));
    }
    Ok((name.to_owned(), value))
}

/// Why an environment file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvFileError {
    /// It cannot be read.
    #[error("cannot read the environment file {}", .path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is no variable.
    #[error("line {line} of {}: {reason}", .path.display())]
    Line {
        /// In which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
}

/// The environment that files and options describe; options win. A file has one variable per line; empty lines and
/// those that begin with `#` say nothing.
pub(crate) fn environment(
    files: &[PathBuf],
    options: Vec<(String, String)>,
) -> Result<BTreeMap<String, String>, EnvFileError> {
    let mut environment = BTreeMap::new();
    for path in files {
        environment.extend(env_file(path)?);
    }
    environment.extend(options);
    Ok(environment)
}

fn env_file(path: &Path) -> Result<Vec<(String, String)>, EnvFileError> {
    let text = std::fs::read_to_string(path).map_err(|source| EnvFileError::Read { path: path.into(), source })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    let parse = |(index, line)| {
        variable(line).map_err(|reason| EnvFileError::Line { path: path.into(), line: index + 1, reason })
    };
    lines.map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_nonsense_is_refused() {
        let cases = [("512M", 512 << 20), ("4GiB", 4 << 30), ("1.5g", 3 << 29), ("4096", 4096), ("0.25k", 256)];
        for (text, bytes) in cases {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "-1G", "4X", "1.G", ".5G", "1e9", "99999999999G", "1.2.3M", "4 G", "1.1234567G"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ram_has_bounds_that_are_told_as_they_are_typed() {
        assert_eq!([memory("128M"), memory("64G")], [Ok(128 << 20), Ok(64 << 30)]);
        for text in ["127M", "65G", "134217727"] {
            assert_eq!(memory(text), Err(format!("{text} is not in 128M to 64G")));
        }
    }

    #[test]
    fn an_idle_timeout_is_a_duration_or_off() {
        assert_eq!([idle_timeout("off"), idle_timeout("10m")], [Ok(0), Ok(600_000)]);
        for text in ["", "0", "0s", "on", "-1s"] {
            assert_eq!(idle_timeout(text), Err(format!("{text:?} is neither off nor a duration such as 10m")));
        }
    }

    #[test]
    fn an_option_wins_over_a_file_and_a_wrong_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "# comment\n\nA=file\nB=a=b\n").unwrap();
        let environment = environment(std::slice::from_ref(&path), vec![variable("A=option").unwrap()]).unwrap();
        assert_eq!(
            environment.into_iter().collect::<Vec<_>>(),
            [("A".into(), "option".into()), ("B".into(), "a=b".into())]
        );

        std::fs::write(&path, "A=1\n=oops\n").unwrap();
        let error = super::environment(&[path], Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("line 2 of "), "{error}");
    }
}
