//! Columns of numbers from text files.

use std::path::Path;

use linen::Result;

use crate::error::DataError;

/// The numbers of a column of a CSV file, by the name in its first line.
///
/// # Errors
/// [`DataError::Csv`] if the file cannot be read, has no such column, or holds something else than
/// a number there.
pub fn csv_column(path: impl AsRef<Path>, name: &str) -> Result<Vec<f32>> {
    let path = path.as_ref();
    let problem = |problem: String| DataError::Csv { path: path.into(), problem };
    let text =
        std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default().split(',').collect::<Vec<_>>();
    let column = header.iter().position(|column| *column == name).ok_or_else(|| {
        problem(format!("it has no column {name:?}; it has {}", header.join(", ")))
    })?;
    let numbers = lines.zip(2..).map(|(line, number)| {
        let value = line.split(',').nth(column).unwrap_or_default();
        let wrong =
            |_| problem(format!("line {number} has {value:?} instead of a number"));
        Ok(value.trim().parse().map_err(wrong)?)
    });
    numbers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_problems_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("table.csv");
        std::fs::write(&path, "step,loss\n1,0.5\n2,0.25\n").unwrap();
        assert_eq!(csv_column(&path, "loss").unwrap(), [0.5, 0.25]);
        let problem = |name: &str| csv_column(&path, name).unwrap_err().to_string();
        assert!(problem("epoch").contains("no column \"epoch\"; it has step, loss"));
        std::fs::write(&path, "step,loss\n1,x\n").unwrap();
        assert!(problem("loss").contains("line 2 has \"x\""));
        std::fs::remove_file(&path).unwrap();
        assert!(problem("loss").contains("table.csv"));
    }
}
