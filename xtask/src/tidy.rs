//! What a committed notebook must look like, so that a change to it shows what changed and nothing else.

use serde_json::{Value, json};

use crate::check::failures;
use crate::notebook::{CodeCell, Notebook, is_progress, joined};

/// The kernel that notebooks name: evcxr's own kernelspec has the same, so they open under either.
fn kernelspec() -> Value {
    json!({"display_name": "Rust", "language": "rust", "name": "rust"})
}

/// All that is untidy in a notebook, one line each; nothing when all is well.
///
/// Wanted: executed in order and without failures; no more metadata than the kernel, the language, and cells' tags; an
/// identifier for each cell, all different; no paths of a machine; no progress lines, which tell of speed.
pub fn untidy(notebook: &Notebook) -> Vec<String> {
    let mut found = metadata(notebook.json());
    found.extend(identifiers(notebook.cells()));
    let cells = notebook.code_cells();
    for (cell, count) in cells.iter().zip(1..) {
        if cell.count != Some(count) {
            let was = cell.count.map_or("no number".to_owned(), |count| count.to_string());
            found.push(format!("{}: execution count {count} wanted, found {was}", name(cell)));
        }
        found.extend(texts(cell).iter().flat_map(|text| text.lines()).filter_map(|line| {
            let what = if is_progress(line) {
                "a progress line"
            } else if has_path(line) {
                "a path of a machine"
            } else {
                return None;
            };
            Some(format!("{}: {what}: {}", name(cell), line.trim()))
        }));
    }
    found.extend(failures(notebook, notebook).iter().map(ToString::to_string));
    found
}

fn metadata(json: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if json["nbformat"] != 4 || json["nbformat_minor"].as_u64() < Some(5) {
        found.push("nbformat 4.5 wanted: earlier ones have no cell identifiers".to_owned());
    }
    if json["metadata"]["kernelspec"] != kernelspec() {
        found.push(format!("metadata: kernelspec {} wanted", kernelspec()));
    }
    found.extend(others(&json["metadata"], &["kernelspec", "language_info"], "metadata"));
    for (cell, number) in json["cells"].as_array().into_iter().flatten().zip(1..) {
        found.extend(others(
            &cell["metadata"],
            &["tags"],
            &format!("metadata of cell {number} (of all)"),
        ));
    }
    found
}

fn others(metadata: &Value, wanted: &[&str], place: &str) -> Vec<String> {
    let keys = metadata.as_object().into_iter().flatten().map(|(key, _)| key);
    keys.filter(|key| !wanted.contains(&key.as_str()))
        .map(|key| format!("{place}: `{key}`"))
        .collect()
}

fn identifiers(cells: &[Value]) -> Vec<String> {
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

/// Text outputs that differ in more than digits between two executions of the same notebook, as
/// names of cells. A cell of `one` that was never executed shows nothing to differ from.
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

/// The text with each number replaced by `#`, and blanks and rules, by which tables are aligned, taken together.
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

/// What a cell shows as text.
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

fn has_path(line: &str) -> bool {
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
                {"cell_type": "code", "id": "one", "metadata": {}, "source": "one", "execution_count": 1,
                 "outputs": [{"output_type": "stream", "name": "stdout", "text": ["loss 0.1317\n"]}]},
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
    fn a_tidy_notebook_is_not_reported() {
        assert_eq!(found(|_| {}), [""; 0]);
    }

    #[test]
    fn metadata_that_editors_leave_behind_is_untidy() {
        assert_eq!(found(|n| n["metadata"]["widgets"] = json!({})), ["metadata: `widgets`"]);
        let times = found(|n| n["cells"][1]["metadata"]["execution"] = json!({"start": "12:00"}));
        assert_eq!(times, ["metadata of cell 2 (of all): `execution`"]);
        assert_eq!(found(|n| n["metadata"]["kernelspec"]["name"] = json!("rust-2")).len(), 1);
        assert_eq!(found(|n| n["nbformat_minor"] = json!(4)).len(), 1);
    }

    #[test]
    fn cells_need_identifiers_of_their_own() {
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
    fn a_notebook_must_have_been_executed_from_top_to_bottom() {
        let gap = found(|n| n["cells"][2]["execution_count"] = json!(3));
        assert_eq!(gap, ["code cell 2 (Title): execution count 2 wanted, found 3"]);
        let never = found(|n| n["cells"][2]["execution_count"] = Value::Null);
        assert!(never[0].ends_with("execution count 2 wanted, found no number"), "{never:?}");
    }

    #[test]
    fn paths_progress_and_failures_in_outputs_are_untidy() {
        let print = |line: &str| found(|n| n["cells"][1]["outputs"][0]["text"] = json!([line]));
        assert_eq!(
            print("read /home/me/data\n"),
            ["code cell 1 (Title): a path of a machine: read /home/me/data"]
        );
        assert_eq!(
            print("▕███▏ 9 % 7 images/s"),
            ["code cell 1 (Title): a progress line: ▕███▏ 9 % 7 images/s"]
        );
        let stderr = found(|n| n["cells"][1]["outputs"][0]["name"] = json!("stderr"));
        assert!(stderr[0].contains("standard error: loss 0.1317"), "{stderr:?}");
    }

    #[test]
    fn executions_may_differ_in_digits_and_in_nothing_else() {
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
