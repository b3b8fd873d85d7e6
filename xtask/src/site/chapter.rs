//! An executed notebook as a chapter of a book: Markdown, and the files that it shows.

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::Value;

use crate::notebook::{Notebook, joined};

/// A page of the book.
#[derive(Debug)]
pub struct Chapter {
    /// The page's text.
    pub markdown: String,
    /// Names and contents of the files that the text shows.
    pub files: Vec<(String, Vec<u8>)>,
}

/// Converts a notebook. Names of files begin with `name`.
///
/// # Errors
/// If a picture is not what it says.
pub fn chapter(name: &str, notebook: &Notebook) -> Result<Chapter> {
    let mut writer = Writer { name, markdown: String::new(), files: Vec::new() };
    for (index, cell) in notebook.cells().iter().enumerate() {
        let source = joined(&cell["source"]);
        match cell["cell_type"].as_str() {
            Some("markdown") => writer.text(index, &source, &cell["attachments"])?,
            Some("code") => {
                writer.fence("rust,ignore", &source);
                for output in cell["outputs"].as_array().into_iter().flatten() {
                    writer.output(index, output).with_context(|| format!("cell {index}"))?;
                }
            }
            _ => {}
        }
    }
    Ok(Chapter { markdown: writer.markdown, files: writer.files })
}

/// A page with its links to other pages as mdBook wants them.
pub fn links(page: &str) -> String {
    page.replace(".ipynb)", ".md)")
        .replace("colab.md)", "colab.ipynb)")
        .replace("/README.md", "/index.md")
}

struct Writer<'a> {
    name: &'a str,
    markdown: String,
    files: Vec<(String, Vec<u8>)>,
}

impl Writer<'_> {
    fn push(&mut self, block: &str) {
        self.markdown += block.trim_end();
        self.markdown += "\n\n";
    }

    /// Keeps a file, and returns its name.
    fn file(&mut self, name: &str, content: Vec<u8>) -> String {
        let name = format!("{}_{name}", self.name);
        self.files.push((name.clone(), content));
        name
    }

    fn text(&mut self, index: usize, source: &str, attachments: &Value) -> Result<()> {
        let mut text = links(source);
        for (attached, data) in attachments.as_object().into_iter().flatten() {
            let content = BASE64_STANDARD.decode(joined(&data["image/png"]))?;
            let file = self.file(&format!("{index}.png"), content);
            text = text.replace(&format!("attachment:{attached}"), &file);
        }
        self.push(&text);
        Ok(())
    }

    /// A block of code, whose fence is longer than any in it.
    fn fence(&mut self, language: &str, text: &str) {
        let ticks =
            "`".repeat(text.split(|it| it != '`').map(str::len).max().unwrap_or(0).max(2) + 1);
        self.push(&format!("{ticks}{language}\n{}\n{ticks}", text.trim_end()));
    }

    fn output(&mut self, index: usize, output: &Value) -> Result<()> {
        let data = &output["data"];
        if output["output_type"] == "stream" {
            self.fence("text", &joined(&output["text"]));
        } else if data["image/svg+xml"] != Value::Null {
            let file = self.file(&format!("{index}.svg"), joined(&data["image/svg+xml"]).into());
            let described = one_line(&joined(&data["text/plain"]));
            self.push(&format!("<img class=\"output\" src=\"{file}\" alt=\"{described}\">"));
        } else if data["text/html"] != Value::Null {
            self.html(index, &joined(&data["text/html"]))?;
        } else {
            self.fence("text", &joined(&data["text/plain"]));
        }
        Ok(())
    }

    /// HTML, where a page in a frame becomes a file.
    fn html(&mut self, index: usize, html: &str) -> Result<()> {
        let html = match html.split_once("srcdoc=\"") {
            Some((before, rest)) => {
                let (page, after) = rest.split_once('"').context("a frame without an end")?;
                let file = self.file(&format!("{index}.html"), unescaped(page).into_bytes());
                format!("{before}src=\"{file}\" loading=\"lazy\"{after}")
            }
            None => html.to_owned(),
        };
        // An empty line would end the block.
        let lines: Vec<&str> = html.lines().filter(|line| !line.trim().is_empty()).collect();
        self.push(&format!("<div class=\"output\">\n{}\n</div>", lines.join("\n")));
        Ok(())
    }
}

/// A text in one line, for an attribute.
fn one_line(text: &str) -> String {
    let text = text.lines().map(str::trim).collect::<Vec<_>>().join("; ");
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

/// The text of an attribute: a frame escapes quotes and ampersands.
fn unescaped(attribute: &str) -> String {
    attribute.replace("&quot;", "\"").replace("&amp;", "&")
}
