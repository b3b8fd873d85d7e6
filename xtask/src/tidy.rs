//! Checks the form of committed notebooks, so that diffs show only real changes.

use serde_json::{Value, json};

use crate::check::failures;
use crate::notebook::{CodeCell, Notebook, is_progress, joined};

/// The kernelspec of notebooks. It equals evcxr's own, so notebooks open with either kernel.
fn kernelspec() -> Value {
    json!({"display_name": "Rust", "language": "rust", "name": "rust"})
}

/// The problems of a notebook, one line each.
///
/// A tidy notebook was executed in order without failures. Its metadata are only the kernel, the
/// language and cell tags. Each cell has a unique identifier. Outputs have no local paths and no
/// progress lines.
pub fn untidy(notebook: &Notebook) -> Vec<String> {
    let mut found = metadata_problems(notebook.json());
    found.extend(identifier_problems(notebook.cells()));
    let cells = notebook.code_cells();
    for (cell, count) in cells.iter().zip(1..) {
        if cell.count != Some(count) {
            let found_count = cell.count.map_or("none".to_owned(), |count| count.to_string());
            let name = name(cell);
            found.push(format!("{name}: expected execution count {count}, found {found_count}"));
        }
        found.extend(texts(cell).iter().flat_map(|text| text.lines()).filter_map(|line| {
            let what = if is_progress(line) {
                "progress line"
            } else if has_local_path(line) {
                "local path"
            } else {
                return None;
            };
            Some(format!("{}: {what}: {}", name(cell), line.trim()))
        }));
    }
    found.extend(failures(notebook, notebook).iter().map(ToString::to_string));
    found
}

fn metadata_problems(json: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if json["nbformat"] != 4 || json["nbformat_minor"].as_u64() < Some(5) {
        found.push("expected nbformat 4.5: earlier ones have no cell identifiers".to_owned());
    }
    if json["metadata"]["kernelspec"] != kernelspec() {
        found.push(format!("metadata: expected kernelspec {}", kernelspec()));
    }
    found.extend(extra_keys(&json["metadata"], &["kernelspec", "language_info"], "metadata"));
    for (cell, number) in json["cells"].as_array().into_iter().flatten().zip(1..) {
        let place = format!("metadata of cell {number} (of all)");
        found.extend(extra_keys(&cell["metadata"], &["tags"], &place));
    }
    found
}

fn extra_keys(metadata: &Value, allowed: &[&str], place: &str) -> Vec<String> {
    let keys = metadata.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| !allowed.contains(&key.as_str()))
        .map(|key| format!("{place}: unexpected `{key}`"))
        .collect()
}

fn identifier_problems(cells: &[Value]) -> Vec<String> {
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for (cell, number) in cells.iter().zip(1..) {
        match cell["id"].as_str() {
            None | Some("") => found.push(format!("cell {number} (of all) has no identifier")),
            Some(id) if seen.contains(&id) => {
                found.push(format!("two cells have the identifier `{id}`"))
            }
            Some(id) => seen.push(id),
        }
    }
    found
}

/// The cells whose text output differs between two executions of a notebook, ignoring digits. Cells
/// that were never executed in `one` are skipped.
pub fn differences(one: &Notebook, other: &Notebook) -> Vec<String> {
    let shapes =
        |cell: &CodeCell| texts(cell).iter().map(|text| without_digits(text)).collect::<Vec<_>>();
    let (one, other) = (one.code_cells(), other.code_cells());
    one.iter()
        .zip(&other)
        .filter(|(a, b)| a.count.is_some() && shapes(a) != shapes(b))
        .map(|(cell, _)| name(cell))
        .collect()
}

/// The text with numbers replaced by `#` and runs of spaces and rules, which align tables, by a
/// single space.
fn without_digits(text: &str) -> String {
    let mut shape = String::new();
    for character in text.chars() {
        let kind = match character {
            '0'..='9' | '.' | ',' | '-' => '#',
            ' ' | '─' => ' ',
            other => other,
        };
        if !(matches!(kind, '#' | ' ') && shape.ends_with(kind)) {
            shape.push(kind);
        }
    }
    shape
}

/// The text outputs of a cell.
fn texts(cell: &CodeCell) -> Vec<String> {
    let text = |output: &Value| {
        joined(if output["output_type"] == "stream" {
            &output["text"]
        } else {
            &output["data"]["text/plain"]
        })
    };
    cell.outputs.iter().map(text).collect()
}

fn has_local_path(line: &str) -> bool {
    ["/home/", "/root/", "/tmp/", "/Users/", "C:\\"].iter().any(|start| line.contains(start))
}

fn name(cell: &CodeCell) -> String {
    format!("code cell {} ({})", cell.number, cell.title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notebook() -> Value {
        json!({
            "cells": [
                {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Title"},
                {"cell_type": "code", "id": "one", "metadata": {}, "source": "one",
                 "execution_count": 1,
                 "outputs": [{"output_type": "stream", "name": "stdout",
                              "text": ["loss 0.1317\n"]}]},
                {"cell_type": "code", "id": "two", "metadata": {"tags": ["long"]}, "source": "two",
                 "execution_count": 2, "outputs": []},
            ],
            "metadata": {"kernelspec": kernelspec(), "language_info": {"name": "Rust"}},
            "nbformat": 4, "nbformat_minor": 5,
        })
    }

    fn found(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut json = notebook();
        change(&mut json);
        untidy(&Notebook::parse(&json.to_string()).unwrap())
    }

    #[test]
    fn tidy_notebooks_have_no_problems() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn extra_metadata_of_editors_is_untidy() {
        let widgets = found(|n| n["metadata"]["widgets"] = json!({}));
        assert_eq!(widgets, ["metadata: unexpected `widgets`"]);
        let times = found(|n| n["cells"][1]["metadata"]["execution"] = json!({"start": "12:00"}));
        assert_eq!(times, ["metadata of cell 2 (of all): unexpected `execution`"]);
        assert_eq!(found(|n| n["metadata"]["kernelspec"]["name"] = json!("rust-2")).len(), 1);
        assert_eq!(found(|n| n["nbformat_minor"] = json!(4)).len(), 1);
    }

    #[test]
    fn cells_need_unique_identifiers() {
        assert_eq!(
            found(|n| n["cells"][0]["id"] = Value::Null),
            ["cell 1 (of all) has no identifier"]
        );
        assert_eq!(
            found(|n| n["cells"][0]["id"] = json!("two")),
            ["two cells have the identifier `two`"]
        );
    }

    #[test]
    fn notebooks_must_be_executed_from_top_to_bottom() {
        let gap = found(|n| n["cells"][2]["execution_count"] = json!(3));
        assert_eq!(gap, ["code cell 2 (Title): expected execution count 2, found 3"]);
        let never = found(|n| n["cells"][2]["execution_count"] = Value::Null);
        assert!(never[0].ends_with("expected execution count 2, found none"), "{never:?}");
    }

    #[test]
    fn paths_progress_and_failures_in_outputs_are_untidy() {
        let print = |line: &str| found(|n| n["cells"][1]["outputs"][0]["text"] = json!([line]));
        assert_eq!(
            print("read /home/me/data\n"),
            ["code cell 1 (Title): local path: read /home/me/data"]
        );
        assert_eq!(
            print("▕███▏ 9 % 7 images/s"),
            ["code cell 1 (Title): progress line: ▕███▏ 9 % 7 images/s"]
        );
        let stderr = found(|n| n["cells"][1]["outputs"][0]["name"] = json!("stderr"));
        assert!(stderr[0].contains("standard error: loss 0.1317"), "{stderr:?}");
    }

    #[test]
    fn executions_may_differ_only_in_digits() {
        let with = |line: &str| {
            let mut json = notebook();
            json["cells"][1]["outputs"][0]["text"] = json!(line);
            Notebook::parse(&json.to_string()).unwrap()
        };
        assert_eq!(differences(&with("loss  0.1317\n"), &with("loss 12.5e-3, \n")).len(), 1);
        assert_eq!(differences(&with("loss  0.1317\n"), &with("loss 12.53\n")), [""; 0]);
        assert_eq!(differences(&with("loss 1\n"), &with("loss NaN\n")), ["code cell 1 (Title)"]);
        let mut never = with("loss 1\n");
        never.clear();
        assert_eq!(differences(&never, &with("loss 1\n")), [""; 0]);
    }
}
