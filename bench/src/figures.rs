//! Figures: medians, and how a figure and its bound are printed. A figure that misses its bound fails nothing.

/// The median of `values`, which are sorted for it; 0 when there are none.
pub fn median(values: &mut [u64]) -> u64 {
    percentile(values, 50)
}

/// The median of one figure of each.
pub fn median_of<T>(of: &[T], figure: impl Fn(&T) -> u64) -> u64 {
    median(&mut of.iter().map(figure).collect::<Vec<_>>())
}

/// The value that `percent` of a hundred of `values` do not exceed, which are sorted for it; 0 when there are none. The
/// 99th of fewer than a hundred values is the largest.
pub fn percentile(values: &mut [u64], percent: usize) -> u64 {
    values.sort_unstable();
    let at = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(0)
}

/// Prints a figure, the bound that it should keep, and whether it does.
pub fn bound(what: &str, figure: &str, bound: &str, is_met: bool) {
    let verdict = if is_met { "met" } else { "NOT MET" };
    println!("  {what:<46} {figure:>10}   {bound:<30} {verdict}");
}

/// Prints rows under a head, numbers to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let columns = head.len();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(head.get(column).map(|cell| cell.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column {
            0 => format!("  {cell:<width$}"),
            _ => format!("   {cell:>width$}"),
        });
        println!("{}", padded.collect::<String>());
    };
    line(head.to_vec());
    rows.iter().for_each(|row| line(row.iter().map(String::as_str).collect()));
}

/// A row of a table: a size, and figures.
pub fn row(size: u64, figures: impl Iterator<Item = u64>) -> Vec<String> {
    std::iter::once(mib(size)).chain(figures.map(|figure| figure.to_string())).collect()
}

/// Microseconds for people: `640 µs`, `7.25 ms`, `3.4 s`.
pub fn took(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} µs"),
        1_000..1_000_000 => format!("{:.2} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// Bytes in MiB, or in GiB when they are that many.
pub fn mib(bytes: u64) -> String {
    match bytes {
        0..0x4000_0000 => format!("{} MiB", Short(bytes as f64 / f64::from(1 << 20))),
        _ => format!("{} GiB", Short(bytes as f64 / f64::from(1 << 30))),
    }
}

/// A number without needless digits.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.fract() == 0.0 { write!(f, "{:.0}", self.0) } else { write!(f, "{:.1}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_do_not_leave_the_values() {
        assert_eq!(median(&mut [3, 1, 2]), 2);
        assert_eq!(percentile(&mut [3, 1, 2], 99), 3);
        assert_eq!(percentile(&mut [3, 1, 2], 100), 3);
        assert_eq!(median(&mut []), 0);
        let mut hundred: Vec<u64> = (0..100).collect();
        assert_eq!(percentile(&mut hundred, 99), 99);
    }

    #[test]
    fn figures_read_well() {
        assert_eq!([took(640), took(7250), took(3_400_000)], ["640 µs", "7.25 ms", "3.40 s"]);
        assert_eq!([mib(128 << 20), mib(3 << 19), mib(4 << 30)], ["128 MiB", "1.5 MiB", "4 GiB"]);
    }
}
