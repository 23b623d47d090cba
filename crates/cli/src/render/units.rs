//! Sizes, durations and times for people.

/// A size in binary units, with a decimal where it says something: `512 MiB`, `1.5 GiB`.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = bytes;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let tenths = rest * 10 / 1024;
    let decimal = if tenths > 0 && whole < 100 { format!(".{tenths}") } else { String::new() };
    format!("{whole}{decimal} {}", UNITS[unit])
}

/// A duration with three digits: `410 µs`, `7.3 ms`, `21 s`.
pub(crate) fn micros(us: u64) -> String {
    let (value, unit) = match us {
        0..1_000 => return format!("{us} µs"),
        1_000..1_000_000 => (us, "ms"),
        _ => (us / 1_000, "s"),
    };
    match value {
        0..10_000 => format!("{}.{:02} {unit}", value / 1_000, value % 1_000 / 10),
        10_000..100_000 => format!("{}.{} {unit}", value / 1_000, value % 1_000 / 100),
        _ => format!("{} {unit}", value / 1_000),
    }
}

/// How long ago: `12s`, `3m`, `5h`, `2d`. What lies ahead (another computer's clock) is `0s`.
pub(crate) fn age(then_ms: i64, now_ms: i64) -> String {
    let seconds = now_ms.saturating_sub(then_ms).max(0) / 1_000;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// A moment in UTC: `2026-05-09 07:30:09`.
pub(crate) fn timestamp(at_ms: i64) -> String {
    let seconds = at_ms.div_euclid(1_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3_600, second / 60 % 60, second % 60)
}

/// The Gregorian date of a day counted from 1970-01-01. Years begin in March here, so that the leap day comes last.
fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097; // 400 years
    let days = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_decimal_only_where_it_says_something() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (512 << 20, "512 MiB"), (3 << 29, "1.5 GiB"), (4 << 40, "4 TiB")];
        for (size, text) in cases {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn durations_have_three_digits() {
        let cases = [(0, "0 µs"), (999, "999 µs"), (1_234, "1.23 ms"), (45_678, "45.6 ms"), (999_999, "999 ms")];
        for (us, text) in cases {
            assert_eq!(micros(us), text);
        }
        assert_eq!(micros(1_500_000), "1.50 s");
        assert_eq!(micros(180_000_000), "180 s");
    }

    #[test]
    fn ages_have_one_unit_and_are_never_negative() {
        let cases = [(-5, "0s"), (119, "119s"), (120, "2m"), (7_200, "2h"), (172_800, "2d")];
        for (seconds, text) in cases {
            assert_eq!(age(0, seconds * 1_000), text);
        }
    }

    #[test]
    fn moments_are_gregorian_and_utc() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00");
        assert_eq!(timestamp(951_782_399_999), "2000-02-28 23:59:59");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(timestamp(1_778_311_809_000), "2026-05-09 07:30:09");
        assert_eq!(timestamp(-1), "1969-12-31 23:59:59");
    }
}
