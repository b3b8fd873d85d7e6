//! Executed notebooks as HTML pages, for all screens and readers.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::prelude::{BASE64_STANDARD, Engine};

use crate::process::run;
use crate::project::Project;

/// What nbconvert's page lacks: a code font for source code in cell outputs, lines that break
/// between words, and figures that shrink to a narrow screen.
const STYLE: &str = "<style>
.jp-OutputArea-output pre, .jp-OutputArea-output code {
  font-family: var(--jp-code-font-family), monospace;
  font-size: var(--jp-code-font-size);
  word-break: normal;
  overflow-wrap: anywhere;
}
.jp-RenderedSVG img, .jp-RenderedSVG svg, .jp-RenderedImage img {
  max-width: 100%;
  height: auto;
}
</style>
</head>";

/// Converts an executed notebook into an HTML page beside it.
///
/// # Errors
/// If nbconvert fails, or the page cannot be read or written.
pub fn convert(project: &Project, notebook: &Path) -> Result<PathBuf> {
    let mut convert = project.jupyter();
    // Its warning: figures lack the texts that are added below.
    convert.args(["-m", "nbconvert", "--to", "html", "--log-level", "ERROR"]).arg(notebook);
    run(&mut convert).context("cannot convert the notebook to HTML")?;
    let page = notebook.with_extension("html");
    fs::write(&page, improve(&fs::read_to_string(&page)?))?;
    Ok(page)
}

/// The page with [`STYLE`], and with each figure's description as its text for screen readers.
fn improve(html: &str) -> String {
    const NO_TEXT: &str = r#"<img alt="No description has been provided for this image" src=""#;
    const SVG: &str = "data:image/svg+xml;base64,";
    let html = html.replacen("</head>", STYLE, 1);
    let mut parts = html.split(NO_TEXT);
    let mut page = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let figure = part.strip_prefix(SVG).and_then(|data| data.split('"').next());
        match figure.and_then(description) {
            Some(text) => page += &format!(r#"<img alt="{text}" src=""#),
            None => page += NO_TEXT,
        }
        page += part;
    }
    page
}

/// The description in an SVG, still escaped, which is the same in XML and HTML.
fn description(base64: &str) -> Option<String> {
    let svg = String::from_utf8(BASE64_STANDARD.decode(base64).ok()?).ok()?;
    let (_, rest) = svg.split_once("<desc>")?;
    let (text, _) = rest.split_once("</desc>")?;
    Some(text.lines().map(str::trim).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(alt: &str, svg: &str) -> String {
        let data = BASE64_STANDARD.encode(svg);
        format!(r#"<img alt="{alt}" src="data:image/svg+xml;base64,{data}"/>"#)
    }

    #[test]
    fn figures_get_their_description_for_screen_readers() {
        let no_text = "No description has been provided for this image";
        let svg = "<svg><title>Loss</title>\n<desc>Loss &lt;nats&gt;\n  test: 0.1</desc></svg>";
        let plain = "<svg/>";
        let page = ["<head></head>", &image(no_text, svg), &image(no_text, plain), "end"].concat();
        let found = improve(&page);
        let figures = [image("Loss &lt;nats&gt;; test: 0.1", svg), image(no_text, plain)].concat();
        assert!(found.ends_with(&(figures + "end")), "{found}");
    }

    #[test]
    fn the_style_is_added_once() {
        let found = improve("<head></head><pre>&lt;/head&gt;</pre></head>");
        assert_eq!(found.matches("max-width: 100%").count(), 1);
        assert!(found.starts_with("<head><style>"), "{found}");
    }
}
