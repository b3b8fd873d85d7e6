//! The tutorial's definitions stand in the walkthrough's cells as they stand in the crate.

use std::fs;

use anyhow::{Context, Result};

use crate::notebook::Notebook;
use crate::project::Project;

/// The tutorial's definitions with their files in the crate, in the tutorial's order.
pub const DEFINITIONS: [(&str, &str); 12] = [
    ("struct Cnn", "model.rs"),
    ("impl Module for Cnn", "model.rs"),
    ("fn onehot", "loss.rs"),
    ("fn cross_entropy_loss", "loss.rs"),
    ("fn create_optimizer", "optimizer.rs"),
    ("fn get_initial_params", "initializer.rs"),
    ("fn compute_metrics", "metrics.rs"),
    ("fn get_datasets", "dataset/mod.rs"),
    ("fn train_step", "train_step.rs"),
    ("fn eval_step", "train_step.rs"),
    ("fn train_epoch", "train_epoch.rs"),
    ("fn eval_model", "train_epoch.rs"),
];

/// Where a notebook's definitions differ from the crate's, a message each; and the number of lines
/// of the notebook's.
///
/// # Errors
/// If a file of the crate cannot be read or lacks a definition.
pub fn differences(project: &Project, notebook: &Notebook) -> Result<(Vec<String>, usize)> {
    let (mut problems, mut lines) = (Vec::new(), 0);
    for (definition, file) in DEFINITIONS {
        let path = project.root().join("mnist-notebook-support/src").join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let expected = find(&text, definition)
            .with_context(|| format!("{} has no `{definition}`", path.display()))?;
        let cells = notebook.code_cells();
        let Some(found) = cells.iter().find_map(|cell| find(&cell.source, definition)) else {
            problems.push(format!("no cell has `{definition}`"));
            continue;
        };
        lines += found.len();
        let longest = found.len().max(expected.len());
        let at = (0..longest).find(|&at| found.get(at) != expected.get(at));
        problems.extend(at.map(|at| {
            let line = |lines: &[String]| lines.get(at).cloned().unwrap_or_default();
            format!(
                "`{definition}`, line {}: the cell has\n    {}\nand {} has\n    {}",
                at + 1,
                line(&found),
                path.display(),
                line(&expected),
            )
        }));
    }
    Ok((problems, lines))
}

/// The lines of a definition, with the attribute `#[jit]` above it, without `pub`.
fn find(text: &str, definition: &str) -> Option<Vec<String>> {
    let lines = text.lines().map(|line| line.strip_prefix("pub ").unwrap_or(line));
    let lines = lines.collect::<Vec<_>>();
    let starts = |line: &&str| {
        line.strip_prefix(definition).is_some_and(|rest| rest.starts_with(['(', '<', ';', ' ']))
    };
    let start = lines.iter().position(starts)?;
    let is_end = |line: &&str| *line == "}" || (!line.starts_with(' ') && line.ends_with(';'));
    let length = lines[start..].iter().position(is_end)?;
    let is_jit = start > 0 && lines[start - 1] == "#[jit]";
    let lines = &lines[start - usize::from(is_jit)..=start + length];
    Some(lines.iter().map(|line| (*line).to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_found_with_their_attribute() {
        let text = "/// Docs.\n#[jit]\npub fn step(\n    x: u8,\n) {\n    f();\n}\n\nstruct Cnn;\n";
        let step = find(text, "fn step").unwrap();
        assert_eq!(step, ["#[jit]", "fn step(", "    x: u8,", ") {", "    f();", "}"]);
        assert_eq!(find(text, "struct Cnn").unwrap(), ["struct Cnn;"]);
        assert_eq!(find(text, "fn ste"), None);
    }
}
