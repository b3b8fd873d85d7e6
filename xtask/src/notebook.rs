//! Reads and writes notebook files (`.ipynb`, nbformat 4).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// A notebook in memory.
#[derive(Clone, Debug)]
pub struct Notebook {
    json: Value,
}

/// A code cell and its place in the notebook.
#[derive(Clone, Debug)]
pub struct CodeCell {
    /// Position among all cells, including text cells, from 0.
    pub index: usize,
    /// Position among the code cells, from 1.
    pub number: usize,
    /// The last heading above the cell, without its `#`; may be empty.
    pub title: String,
    /// The cell's identifier; empty if it has none.
    pub id: String,
    /// The code.
    pub source: String,
    /// Whether the cell is tagged `raises-exception`: it shows a failure on purpose.
    pub raises: bool,
    /// The execution count; `None` if the cell never ran.
    pub count: Option<u64>,
    /// The outputs as nbformat objects.
    pub outputs: Vec<Value>,
}

impl Notebook {
    /// Reads a notebook.
    ///
    /// # Errors
    /// If the file cannot be read, is not JSON, or has no list of cells (nbformat before 4).
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read notebook {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} is not a notebook", path.display()))
    }

    /// Reads a notebook from its text.
    ///
    /// # Errors
    /// If the text is not JSON or has no list of cells.
    pub fn parse(text: &str) -> Result<Self> {
        // Some editors add a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let json: Value = serde_json::from_str(text)?;
        ensure!(json["cells"].is_array(), "it has no list of `cells`");
        Ok(Self { json })
    }

    /// Reads a notebook that must be in Rust.
    ///
    /// # Errors
    /// Those of [`Notebook::read`], and when the notebook's metadata name another language.
    pub fn read_rust(path: &Path) -> Result<Self> {
        let notebook = Self::read(path)?;
        let metadata = &notebook.json["metadata"];
        let languages = [&metadata["kernelspec"]["language"], &metadata["language_info"]["name"]];
        // Some tools write only the kernel's name.
        let python = metadata["kernelspec"]["name"].as_str().filter(|it| it.starts_with("python"));
        let language = languages.into_iter().find_map(Value::as_str).or(python).unwrap_or("rust");
        ensure!(
            language.eq_ignore_ascii_case("rust"),
            "{} is in {language}, but only Rust notebooks can be run here: open it in JupyterLab \
             with a kernel for {language}",
            path.display()
        );
        Ok(notebook)
    }

    /// The whole notebook as JSON.
    pub fn json(&self) -> &Value {
        &self.json
    }

    /// The file's text, formatted as Jupyter does: sorted keys, an indent of one space, a final
    /// newline.
    pub fn text(&self) -> String {
        let mut bytes = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b" ");
        let mut writer = serde_json::Serializer::with_formatter(&mut bytes, format);
        serde::Serialize::serialize(&self.json, &mut writer)
            .expect("JSON values can always be serialized");
        String::from_utf8(bytes).expect("JSON is UTF-8") + "\n"
    }

    /// Writes the notebook, creating its folder if needed.
    ///
    /// # Errors
    /// If the folder or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, self.text())
            .with_context(|| format!("cannot write notebook {}", path.display()))
    }

    /// All cells, text and code.
    pub fn cells(&self) -> &[Value] {
        self.json["cells"].as_array().map_or(&[], Vec::as_slice)
    }

    /// The code cells in order, without blank ones, which Jupyter does not run either.
    pub fn code_cells(&self) -> Vec<CodeCell> {
        let mut title = String::new();
        let mut code = Vec::new();
        for (index, cell) in self.cells().iter().enumerate() {
            let source = joined(&cell["source"]);
            if cell["cell_type"] == "markdown" {
                title = last_heading(&source).unwrap_or(title);
            } else if cell["cell_type"] == "code" && !source.trim().is_empty() {
                code.push(CodeCell {
                    index,
                    number: code.len() + 1,
                    title: title.clone(),
                    id: cell["id"].as_str().unwrap_or_default().to_owned(),
                    source,
                    raises: has_tag(cell, "raises-exception"),
                    count: cell["execution_count"].as_u64(),
                    outputs: cell["outputs"].as_array().cloned().unwrap_or_default(),
                });
            }
        }
        code
    }

    /// Removes the outputs and execution counts of all code cells.
    pub fn clear(&mut self) {
        for cell in self.json["cells"].as_array_mut().into_iter().flatten() {
            if cell["cell_type"] == "code" {
                cell["outputs"] = json!([]);
                cell["execution_count"] = Value::Null;
            }
        }
    }

    /// Replaces values in the cells tagged `parameters`, papermill's name for them: in their lines
    /// `let name: type = value;`.
    ///
    /// # Errors
    /// If such a cell sets a variable that has no value here.
    pub fn set_parameters(&mut self, values: &[(&str, &str)]) -> Result<()> {
        for cell in self.json["cells"].as_array_mut().into_iter().flatten() {
            if cell["cell_type"] == "code" && has_tag(cell, "parameters") {
                let source = joined(&cell["source"]);
                let replaced = source.split_inclusive('\n').map(|line| with_value(line, values));
                cell["source"] = replaced.collect::<Result<Vec<String>>>()?.into();
            }
        }
        Ok(())
    }

    /// Stores a cell's outputs. Joins consecutive pieces of a stream, sets the execution count, and
    /// drops progress lines, which depend on the machine's speed.
    pub fn set_outputs(&mut self, index: usize, count: usize, outputs: &[Value]) {
        let cell = &mut self.json["cells"][index];
        cell["execution_count"] = json!(count);
        cell["outputs"] = Value::Array(stored(outputs, count));
    }
}

/// The folder of a notebook, to which its relative paths refer.
///
/// # Errors
/// If the path is empty, or there is no current folder.
pub fn folder(notebook: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(notebook)?;
    Ok(path.parent().context("the notebook has no parent folder")?.to_owned())
}

/// The byte position where a cell's Rust code begins. Only lines above it can be evcxr commands.
///
/// They may be mixed with blank lines and comments. evcxr treats anything else as code.
pub fn start_of_code(source: &str) -> usize {
    let is_head =
        |line: &&str| is_command(line) || line.starts_with("//") || line.trim().is_empty();
    source.split_inclusive('\n').take_while(is_head).map(str::len).sum()
}

/// Whether a line above the code is a command for evcxr or the shell.
pub fn is_command(line: &str) -> bool {
    line.starts_with('!') || line.trim_start_matches(' ').starts_with(':')
}

/// Joins notebook text, which is stored as a string or as a list of lines.
pub fn joined(text: &Value) -> String {
    match text {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => String::new(),
    }
}

/// Whether a line is a progress bar.
pub fn is_progress(line: &str) -> bool {
    line.starts_with('▕')
}

fn lines(text: &str) -> Value {
    text.split_inclusive('\n').collect()
}

fn last_heading(markdown: &str) -> Option<String> {
    let heading = |line: &str| {
        let text = line.trim_start_matches('#');
        (text.len() < line.len() && text.starts_with(' ')).then(|| text.trim().to_owned())
    };
    markdown.lines().filter_map(heading).next_back()
}

fn has_tag(cell: &Value, tag: &str) -> bool {
    cell["metadata"]["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag))
}

/// The line `let name: type = value;`, whatever follows it, with another value.
fn with_value(line: &str, values: &[(&str, &str)]) -> Result<String> {
    let parts = line.strip_prefix("let ").and_then(|line| line.split_once(" = "));
    let Some((variable, (_, rest))) =
        parts.and_then(|(variable, value)| Some((variable, value.split_once(';')?)))
    else {
        return Ok(line.to_owned());
    };
    let name = variable.split(':').next().unwrap_or_default().trim();
    let value = values.iter().find(|(other, _)| *other == name);
    let (_, value) = value.with_context(|| format!("the parameter `{name}` has no value"))?;
    Ok(format!("let {variable} = {value};{rest}"))
}

/// Converts outputs to the form in which they are stored.
fn stored(outputs: &[Value], count: usize) -> Vec<Value> {
    let mut kept: Vec<Value> = Vec::new();
    for output in outputs {
        let mut output = output.clone();
        if output["output_type"] == "stream" {
            let text = joined(&output["text"]);
            let text: String =
                text.split_inclusive('\n').filter(|line| !is_progress(line)).collect();
            if text.is_empty() {
                continue;
            }
            // evcxr sends each line as a separate output.
            if let Some(last) = kept.last_mut()
                && last["output_type"] == "stream"
                && last["name"] == output["name"]
                && let Value::String(all) = &mut last["text"]
            {
                *all += &text;
                continue;
            }
            output["text"] = text.into();
        }
        if output["output_type"] == "execute_result" {
            output["execution_count"] = json!(count);
        }
        let data = output.get_mut("data").and_then(Value::as_object_mut);
        for (mime, data) in data.into_iter().flatten() {
            if let Value::String(text) = data
                && (mime.starts_with("text/") || mime == "image/svg+xml")
            {
                *data = lines(text);
            }
        }
        kept.push(output);
    }
    for output in kept.iter_mut().filter(|output| output["output_type"] == "stream") {
        output["text"] = lines(&joined(&output["text"]));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notebook() -> Notebook {
        Notebook::parse(
            r###"{"cells": [
                {"cell_type": "markdown", "source": ["# Top\n", "text\n", "## 2. Loss\n", "#hash"]},
                {"cell_type": "code", "id": "a", "metadata": {}, "source": ["let a = 1;\n", "a"],
                 "outputs": []},
                {"cell_type": "code", "id": "blank", "metadata": {}, "source": "", "outputs": []},
                {"cell_type": "code", "id": "b", "metadata": {"tags": ["raises-exception"]},
                 "source": "b", "outputs": []}
            ], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}"###,
        )
        .unwrap()
    }

    #[test]
    fn code_cells_have_their_heading_and_number() {
        let cells = notebook().code_cells();
        assert_eq!(cells.len(), 2);
        assert_eq!((cells[0].number, cells[0].index, &*cells[0].title), (1, 1, "2. Loss"));
        assert_eq!(cells[0].source, "let a = 1;\na");
        assert_eq!((cells[1].number, &*cells[1].id, cells[1].raises), (2, "b", true));
    }

    #[test]
    fn streams_are_joined_progress_dropped_and_results_renumbered() {
        let mut notebook = notebook();
        notebook.set_outputs(
            1,
            1,
            &[
                json!({"output_type": "stream", "name": "stdout", "text": "a\n"}),
                json!({"output_type": "stream", "name": "stdout", "text": "▕█▏ 50 %\n"}),
                json!({"output_type": "stream", "name": "stdout", "text": "b\n▕██▏ 99 %\n"}),
                json!({"output_type": "stream", "name": "stderr", "text": "c\n"}),
                json!({"output_type": "execute_result", "execution_count": 2, "metadata": {},
                       "data": {"text/plain": "1\n2", "image/png": "iVBO"}}),
            ],
        );
        let cell = &notebook.code_cells()[0];
        assert_eq!(cell.count, Some(1));
        assert_eq!(cell.outputs.len(), 3);
        let stdout = json!({"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]});
        assert_eq!(cell.outputs[0], stdout);
        assert_eq!(cell.outputs[2]["execution_count"], json!(1));
        assert_eq!(cell.outputs[2]["data"]["text/plain"], json!(["1\n", "2"]));
        assert_eq!(cell.outputs[2]["data"]["image/png"], json!("iVBO"));
    }

    #[test]
    fn many_lines_are_joined_in_linear_time() {
        let line =
            |step| json!({"output_type": "stream", "name": "stdout", "text": format!("{step}\n")});
        let outputs: Vec<Value> = (0..300_000).map(line).collect();
        let mut notebook = notebook();
        notebook.set_outputs(1, 1, &outputs);
        let cell = &notebook.code_cells()[0];
        assert_eq!(cell.outputs.len(), 1);
        let lines = cell.outputs[0]["text"].as_array().unwrap();
        assert_eq!((lines.len(), &lines[299_999]), (300_000, &json!("299999\n")));
    }

    #[test]
    fn parameters_are_replaced_by_name_only_in_their_cell() {
        let source = "// Lengths\nlet epochs: usize = 8; // of training\nlet images = 55_000;\n";
        let cell = |tags: &[&str]| {
            let metadata = json!({ "tags": tags });
            json!({"cell_type": "code", "metadata": metadata, "source": source})
        };
        let cells = json!({"cells": [cell(&["parameters"]), cell(&[])]});
        let notebook = Notebook::parse(&cells.to_string()).unwrap();
        let mut short = notebook.clone();
        short.set_parameters(&[("epochs", "1"), ("images", "64"), ("other", "2")]).unwrap();
        let sources: Vec<String> = short.code_cells().into_iter().map(|cell| cell.source).collect();
        let replaced = "// Lengths\nlet epochs: usize = 1; // of training\nlet images = 64;\n";
        assert_eq!(sources, [replaced, source]);
        let error = notebook.clone().set_parameters(&[("epochs", "1")]).unwrap_err();
        assert_eq!(error.to_string(), "the parameter `images` has no value");
    }

    #[test]
    fn the_folder_of_a_bare_name_is_the_current_folder() {
        let current = std::env::current_dir().unwrap();
        assert_eq!(folder(Path::new("small.ipynb")).unwrap(), current);
        assert_eq!(folder(Path::new("notebooks/small.ipynb")).unwrap(), current.join("notebooks"));
        assert!(folder(Path::new("")).is_err());
    }

    #[test]
    fn commands_end_where_the_code_begins() {
        let start = |source: &'static str| &source[start_of_code(source)..];
        assert_eq!(start(":dep a\n\n// Text\n  :opt 2\n!ls\nf();\n:x\n!y"), "f();\n:x\n!y");
        assert_eq!(start("let text = \"\n:a\n!b\";"), "let text = \"\n:a\n!b\";");
        assert_eq!(start(" // code, as evcxr has it\n!ls"), " // code, as evcxr has it\n!ls");
        assert_eq!(start(":vars\n// Text"), "");
    }

    #[test]
    fn byte_order_marks_are_ignored() {
        let text = notebook().text();
        let marked = Notebook::parse(&format!("\u{feff}{text}")).unwrap();
        assert_eq!(marked.text(), text);
    }

    #[test]
    fn notebooks_in_other_languages_are_refused() {
        let read = |metadata: Value| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("other.ipynb");
            std::fs::write(&path, json!({"cells": [], "metadata": metadata}).to_string()).unwrap();
            Notebook::read_rust(&path).map(drop).map_err(|error| error.to_string())
        };
        let kernel = |language: &str| json!({"kernelspec": {"name": "any", "language": language}});
        for rust in [kernel("rust"), json!({"language_info": {"name": "Rust"}}), json!({})] {
            assert_eq!(read(rust), Ok(()));
        }
        let by_name = json!({"kernelspec": {"name": "python3"}});
        for python in [kernel("python"), json!({"language_info": {"name": "python"}}), by_name] {
            let error = read(python).unwrap_err();
            assert!(error.contains("other.ipynb is in python"), "{error}");
        }
    }

    #[test]
    fn text_is_formatted_as_by_jupyter() {
        let text = notebook().text();
        assert!(
            text.starts_with("{\n \"cells\": [\n  {\n   \"cell_type\": \"markdown\","),
            "{text}"
        );
        assert!(text.ends_with("\n \"nbformat_minor\": 5\n}\n"), "{text}");
    }
}
