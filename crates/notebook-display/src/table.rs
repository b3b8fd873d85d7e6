//! Tables, such as layers with their parameters or metrics by epoch.

use std::fmt;

use crate::display::{display, escape};
use crate::error::{Error, Result};

/// A table with a header row, shown as HTML and as plain text.
///
/// Columns of numbers are right-aligned, others left-aligned. Code-hosting sites render such HTML
/// tables.
///
/// # Examples
/// ```
/// # use notebook_display::Table;
/// let table = Table::new(&["layer", "parameters"], &[["Conv_0", "320"], ["Conv_1", "18,496"]])?;
/// assert_eq!(table.to_string(), "\
/// layer   parameters
/// ──────  ──────────
/// Conv_0         320
/// Conv_1      18,496");
/// # Ok::<(), notebook_display::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table whose rows have one cell per header.
    ///
    /// # Errors
    /// [`Error::Figure`] without headers, and for a row of another length; the message gives its
    /// number.
    pub fn new<H, R, C>(headers: &[H], rows: &[R]) -> Result<Self>
    where
        H: fmt::Display,
        R: AsRef<[C]>,
        C: fmt::Display,
    {
        let texts = |row: &R| row.as_ref().iter().map(one_line).collect();
        let headers: Vec<String> = headers.iter().map(one_line).collect();
        let rows: Vec<Vec<String>> = rows.iter().map(texts).collect();
        if headers.is_empty() {
            return Err(Error::Figure("a table needs at least one header".to_owned()));
        }
        if let Some(index) = rows.iter().position(|row| row.len() != headers.len()) {
            let (number, found, expected) = (index + 1, rows[index].len(), headers.len());
            let reason =
                format!("row {number} of the table has {found} cells for {expected} headers");
            return Err(Error::Figure(reason));
        }
        Ok(Self { headers, rows })
    }

    /// The table as HTML.
    pub fn html(&self) -> String {
        let line = |name: &str, cells: &[String]| {
            let cells = cells.iter().enumerate().map(|(column, text)| {
                let side = if self.is_numeric(column) { "right" } else { "left" };
                // JupyterLab needs the style; sites that strip styles need the attribute.
                let align = format!("align=\"{side}\" style=\"text-align: {side}\"");
                format!("<{name} {align}>{}</{name}>", escape(text))
            });
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        let head = line("th", &self.headers);
        let body: String = self.rows.iter().map(|row| line("td", row)).collect();
        format!("<table>\n<thead>\n{head}</thead>\n<tbody>\n{body}</tbody>\n</table>")
    }

    /// Shows the table as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        display(&[("text/html", &self.html()), ("text/plain", &self.to_string())]);
    }

    /// Whether all non-empty cells of a column are numbers or percentages.
    fn is_numeric(&self, column: usize) -> bool {
        let mut cells = self.rows.iter().map(|row| &row[column]).filter(|cell| !cell.is_empty());
        let is_number = |cell: &String| {
            let number = cell.trim_end_matches('%').trim_end().replace(',', "");
            number.parse::<f64>().is_ok()
        };
        cells.clone().next().is_some() && cells.all(is_number)
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<_> = self.headers.iter().map(|text| text.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

/// The plain-text form, with columns as wide as their widest cell.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let widths = self.widths();
        let numeric: Vec<_> = (0..widths.len()).map(|column| self.is_numeric(column)).collect();
        let line = |cells: &[String]| {
            let cells = cells.iter().zip(&widths).zip(&numeric);
            let padded = cells.map(|((text, &width), &is_numeric)| {
                if is_numeric { format!("{text:>width$}") } else { format!("{text:<width$}") }
            });
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let rule: Vec<_> = widths.iter().map(|width| "─".repeat(*width)).collect();
        write!(f, "{}\n{}", line(&self.headers), rule.join("  "))?;
        self.rows.iter().try_for_each(|row| write!(f, "\n{}", line(row)))
    }
}

/// A cell's text without line breaks, which would break the row.
fn one_line(cell: &impl fmt::Display) -> String {
    cell.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Table {
        let rows = [["Conv_0", "[28, 28, 32]", "320"], ["Dense_0 & <co>", "[256]", "803,072"]];
        Table::new(&["layer", "output", "parameters"], &rows).unwrap()
    }

    #[test]
    fn numbers_are_right_aligned_and_texts_left_aligned() {
        let text = layers().to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "layer           output        parameters");
        assert_eq!(lines[2], "Conv_0          [28, 28, 32]         320");
        assert_eq!(lines[3], "Dense_0 & <co>  [256]            803,072");
    }

    #[test]
    fn html_has_the_same_cells_escaped_and_aligned() {
        let html = layers().html();
        let document = roxmltree::Document::parse(&html).expect("well-formed");
        let cells = document.descendants().filter(|node| node.has_tag_name("td"));
        let cells: Vec<_> =
            cells.map(|td| (td.text().unwrap(), td.attribute("align").unwrap())).collect();
        assert_eq!(
            cells[3..],
            [("Dense_0 & <co>", "left"), ("[256]", "left"), ("803,072", "right")]
        );
        assert!(html.contains("style=\"text-align: right\""));
    }

    #[test]
    fn a_row_of_another_length_is_refused_with_its_number() {
        let rows = [vec!["1", "2"], vec!["3"]];
        let message = Table::new(&["a", "b"], &rows).unwrap_err().to_string();
        assert!(message.contains("row 2 of the table has 1 cells for 2 headers"), "{message}");
    }

    #[test]
    fn a_cell_with_line_breaks_stays_in_its_row() {
        let table = Table::new(&["a"], &[["one\ntwo"]]).unwrap();
        assert_eq!(table.to_string(), "a\n───────\none two");
    }
}
