//! The table of what was wanted and what was found.

use std::fmt;

use super::statistics::{median, quantile};

/// What a row wants, with the unit of its numbers.
#[derive(Clone, Copy)]
pub enum Bound {
    /// No less than this.
    AtLeast(f64, &'static str),
    /// No more than this.
    AtMost(f64, &'static str),
    /// Nothing: the row is for information.
    Free(&'static str),
}

/// A row of the table.
pub struct Row {
    what: String,
    ours: Option<f64>,
    other: Option<f64>,
    found: f64,
    middle_half: (f64, f64),
    bound: Bound,
}

impl Row {
    /// A row from the milliseconds of both sides (either may be without) and from what is judged, round by round.
    pub fn new(what: &str, ours: &[f64], other: &[f64], found: &[f64], bound: Bound) -> Self {
        let typical = |times: &[f64]| (!times.is_empty()).then(|| median(times));
        Self {
            what: what.to_owned(),
            ours: typical(ours),
            other: typical(other),
            found: median(found),
            middle_half: (quantile(found, 0.25), quantile(found, 0.75)),
            bound,
        }
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least, _) => self.found >= least,
            Bound::AtMost(most, _) => self.found <= most,
            Bound::Free(_) => true,
        }
    }
}

/// The row in Markdown.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (wanted, unit) = match self.bound {
            Bound::AtLeast(least, unit) => (format!("at least {least} {unit}"), unit),
            Bound::AtMost(most, unit) => (format!("at most {most} {unit}"), unit),
            Bound::Free(unit) => (String::new(), unit),
        };
        let digits = match unit {
            "MB" | "%" => 0,
            _ => 2,
        };
        let ms = |ms: Option<f64>| ms.map(|ms| format!("{ms:.2}")).unwrap_or_default();
        let met = match self.bound {
            Bound::Free(_) => "",
            _ if self.is_met() => "yes",
            _ => "no",
        };
        let (low, high) = self.middle_half;
        write!(
            f,
            "| {} | {} | {} | {:.digits$} {unit} | {low:.digits$} to {high:.digits$} | {wanted} | {met} |",
            self.what,
            ms(self.ours),
            ms(self.other),
            self.found,
        )
    }
}

/// The whole table in Markdown, under a line about the machine.
pub fn table(machine: &str, rows: &[Row]) -> String {
    let mut table = format!(
        "{machine}\n\n\
         | | ms | against, ms | median | middle half | wanted | met |\n\
         |---|---|---|---|---|---|---|\n"
    );
    for row in rows {
        table += &format!("{row}\n");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_judges_the_median() {
        let row = Row::new("step", &[2.0], &[8.0], &[3.0, 4.0, 9.0], Bound::AtLeast(4.0, "×"));
        assert_eq!(
            row.to_string(),
            "| step | 2.00 | 8.00 | 4.00 × | 3.50 to 6.50 | at least 4 × | yes |"
        );
        let row = Row::new("peak", &[], &[], &[701.0], Bound::AtMost(700.0, "MB"));
        assert_eq!(row.to_string(), "| peak |  |  | 701 MB | 701 to 701 | at most 700 MB | no |");
    }
}
