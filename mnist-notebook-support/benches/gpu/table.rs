//! The tables of the page, in Markdown.

use std::fmt;

/// A table of times. Rows without any time are not shown.
pub struct Table {
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<f64>>)>,
    ratios: Vec<(String, Vec<Option<f64>>)>,
}

impl Table {
    pub fn new(columns: impl IntoIterator<Item = String>) -> Self {
        Self {
            columns: columns.into_iter().collect(),
            rows: Vec::new(),
            ratios: Vec::new(),
        }
    }

    /// Adds times, one for each column.
    pub fn add(&mut self, name: &str, times: impl IntoIterator<Item = Option<f64>>) {
        self.rows.push((name.to_owned(), times.into_iter().collect()));
    }

    /// Adds how many times faster the row `ours` is than the row `theirs`.
    pub fn add_ratio(&mut self, name: &str, ours: &str, theirs: &str) {
        let times = |name| {
            self.rows.iter().find(|(row, _)| row == name).map(|(_, times)| times)
        };
        let (Some(ours), Some(theirs)) = (times(ours), times(theirs)) else { return };
        let ratio =
            |(ours, theirs): (&Option<f64>, &Option<f64>)| Some((*theirs)? / (*ours)?);
        self.ratios
            .push((name.to_owned(), ours.iter().zip(theirs).map(ratio).collect()));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | {} |", self.columns.join(" | "))?;
        writeln!(f, "|---|{}", "---|".repeat(self.columns.len()))?;
        let mut write = |rows: &[(String, Vec<Option<f64>>)],
                         cell: fn(f64) -> String| {
            for (name, values) in
                rows.iter().filter(|(_, values)| values.iter().any(Option::is_some))
            {
                let cells =
                    values.iter().map(|value| value.map(cell).unwrap_or_default());
                writeln!(f, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "))?;
            }
            Ok(())
        };
        write(&self.rows, time)?;
        write(&self.ratios, |ratio| format!("{ratio:.2} ×"))
    }
}

/// A time with three digits or more.
fn time(time: f64) -> String {
    let digits = match time {
        ..1.0 => 3,
        ..10.0 => 2,
        _ => 1,
    };
    format!("{time:.digits$}")
}
