//! Columns, two spaces apart, under a heading. Where they do not fit, the long texts are cut.

/// What a cut column keeps at least.
pub(super) const SHORTEST: usize = 8;

/// A table being filled.
#[derive(Debug)]
pub(crate) struct Table {
    /// Each column's heading, and whether its texts may be cut.
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings. Those that end in `…` may be cut, and are shown without it.
    pub(crate) fn new<H: AsRef<str>>(headings: impl IntoIterator<Item = H>) -> Self {
        let column = |heading: H| match heading.as_ref().strip_suffix('…') {
            Some(heading) => (heading.to_owned(), true),
            None => (heading.as_ref().to_owned(), false),
        };
        Self { columns: headings.into_iter().map(column).collect(), rows: Vec::new() }
    }

    /// Adds a row, which has one text per heading.
    pub(crate) fn row(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
    }

    /// The text, no line longer than `width` if cutting can bring that about.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let widths = self.widths(width);
        let headings: Vec<_> = self.columns.iter().map(|(heading, _)| heading.clone()).collect();
        let mut text = String::new();
        for row in std::iter::once(&headings).chain(&self.rows) {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&widths) {
                line.push_str(&format!("{:width$}  ", cut(cell, width)));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// How wide each column becomes.
    fn widths(&self, limit: Option<usize>) -> Vec<usize> {
        let longest = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).map(|cell| cell.chars().count());
            cells.fold(self.columns[index].0.chars().count(), usize::max)
        };
        let mut widths: Vec<_> = (0..self.columns.len()).map(longest).collect();
        let gaps = 2 * widths.len().saturating_sub(1);
        while let Some(limit) = limit
            && widths.iter().sum::<usize>() + gaps > limit
        {
            let may_shrink = |&index: &usize| self.columns[index].1 && widths[index] > SHORTEST;
            let Some(widest) = (0..widths.len()).filter(may_shrink).max_by_key(|&index| widths[index]) else {
                break; // Nothing is left to cut.
            };
            widths[widest] -= 1;
        }
        widths
    }
}

/// `text` in at most `width` characters.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> Table {
        let mut table = Table::new(["NAME…", "STATE", "PARENT…"]);
        table.row(vec![name.to_owned(), "running".to_owned(), "-".to_owned()]);
        table
    }

    #[test]
    fn columns_stand_two_spaces_apart_and_lines_end_without_spaces() {
        assert_eq!(table("web").render(Some(80)), "NAME  STATE    PARENT\nweb   running  -\n");
    }

    #[test]
    fn what_does_not_fit_is_cut_and_nothing_is_cut_without_a_limit() {
        let name = "a-name-of-a-pull-request-that-says-too-much";
        let narrow = table(name).render(Some(30));
        assert!(narrow.contains("a-name-of-a-…"), "{narrow}");
        assert!(narrow.lines().all(|line| line.chars().count() <= 30), "{narrow}");
        assert!(table(name).render(None).contains(name));
        assert!(table(name).render(Some(5)).contains("a-name-…"), "a limit that cannot be met ends");
    }
}
