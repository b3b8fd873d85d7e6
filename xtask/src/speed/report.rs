//! The table of targets and results.

use std::fmt;

use super::statistics::{median, quantile};

/// The target of a row, with the unit of its numbers.
#[derive(Clone, Copy)]
pub enum Target {
    /// A lower bound.
    AtLeast(f64, &'static str),
    /// An upper bound.
    AtMost(f64, &'static str),
    /// No target: the row is for information.
    None(&'static str),
}

/// A row of the table.
pub struct Row {
    what: String,
    ours: Option<f64>,
    other: Option<f64>,
    found: f64,
    quartiles: (f64, f64),
    target: Target,
}

impl Row {
    /// A row from the milliseconds of both sides (may be empty) and the results of each round,
    /// whose median is compared with the target.
    pub fn new(what: &str, ours: &[f64], other: &[f64], found: &[f64], target: Target) -> Self {
        let median_of = |times: &[f64]| (!times.is_empty()).then(|| median(times));
        Self {
            what: what.to_owned(),
            ours: median_of(ours),
            other: median_of(other),
            found: median(found),
            quartiles: (quantile(found, 0.25), quantile(found, 0.75)),
            target,
        }
    }

    fn is_met(&self) -> bool {
        match self.target {
            Target::AtLeast(least, _) => self.found >= least,
            Target::AtMost(most, _) => self.found <= most,
            Target::None(_) => true,
        }
    }
}

/// The row in Markdown.
impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, unit) = match self.target {
            Target::AtLeast(least, unit) => (format!("at least {least} {unit}"), unit),
            Target::AtMost(most, unit) => (format!("at most {most} {unit}"), unit),
            Target::None(unit) => (String::new(), unit),
        };
        let digits = match unit {
            "MB" | "%" => 0,
            _ => 2,
        };
        let ms = |ms: Option<f64>| ms.map(|ms| format!("{ms:.2}")).unwrap_or_default();
        let met = match self.target {
            Target::None(_) => "",
            _ if self.is_met() => "yes",
            _ => "no",
        };
        let (ours, other) = (ms(self.ours), ms(self.other));
        let median = format!("{:.digits$} {unit}", self.found);
        let (low, high) = self.quartiles;
        let quartiles = format!("{low:.digits$} to {high:.digits$}");
        write!(
            f,
            "| {} | {ours} | {other} | {median} | {quartiles} | {target} | {met} |",
            self.what
        )
    }
}

/// The whole table in Markdown, under a line about the machine.
pub fn table(machine: &str, rows: &[Row]) -> String {
    let mut table = format!(
        "{machine}\n\n\
         | | ms | other, ms | median | quartiles | target | met |\n\
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
    fn the_median_is_compared_with_the_target() {
        let row = Row::new("step", &[2.0], &[8.0], &[3.0, 4.0, 9.0], Target::AtLeast(4.0, "×"));
        assert_eq!(
            row.to_string(),
            "| step | 2.00 | 8.00 | 4.00 × | 3.50 to 6.50 | at least 4 × | yes |"
        );
        let row = Row::new("peak", &[], &[], &[701.0], Target::AtMost(700.0, "MB"));
        assert_eq!(row.to_string(), "| peak |  |  | 701 MB | 701 to 701 | at most 700 MB | no |");
    }
}
