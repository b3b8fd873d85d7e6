//! The notebooks and the pages of the project as a book, made by mdBook.
//!
//! The book's source mirrors the project's folders, so links between pages are the same in both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use warm_evcxr::files;

use crate::notebook::Notebook;
use crate::process::{command, output, run};
use crate::project::Project;
use crate::site::chapter::{chapter, links};

/// The version of mdBook. A test looks at the pages that it makes.
const MDBOOK: &str = "0.5.4";

/// The chapters with their files, as they follow each other; a headline has no file.
const CHAPTERS: [(&str, &str); 28] = [
    ("The project", "README.md"),
    ("The course", ""),
    ("The walkthrough", "notebooks/annotated_mnist.ipynb"),
    ("Look inside", "notebooks/look_inside.ipynb"),
    ("Make it yours", "notebooks/make_it_yours.ipynb"),
    ("Take it away", "notebooks/take_it_away.ipynb"),
    ("How to", ""),
    ("Set-up and troubleshooting", "docs/set-up.md"),
    ("Ready-made environments", "docs/environments.md"),
    ("The tutorial as a library", "docs/library.md"),
    ("On a GPU", "docs/gpu.md"),
    ("Facts", ""),
    ("Speed", "docs/speed.md"),
    ("Guarantees", "docs/guarantees.md"),
    ("Working on the project", "docs/developing.md"),
    ("Golden values", "tests/golden/README.md"),
    ("The dataset", "data/README.md"),
    ("Fuzzing", "fuzz/README.md"),
    ("Changelog", "CHANGELOG.md"),
    ("Crates", ""),
    ("mnist-notebook-support", "mnist-notebook-support/README.md"),
    ("linen", "crates/linen/README.md"),
    ("cpu-kernels", "crates/cpu-kernels/README.md"),
    ("jax-random", "crates/jax-random/README.md"),
    ("in-browser", "crates/in-browser/README.md"),
    ("images", "crates/images/README.md"),
    ("inspect", "crates/inspect/README.md"),
    ("warm-evcxr", "crates/warm-evcxr/README.md"),
];

const SETTINGS: &str = r#"
[book]
title = "The annotated MNIST tutorial, in Rust"
language = "en"

[output.html]
default-theme = "light"
preferred-dark-theme = "navy"
no-section-label = true
additional-css = ["site.css"]
additional-js = ["site.js"]

[output.html.playground]
runnable = false

# A single page of everything would weigh tens of megabytes.
[output.html.print]
enable = false
"#;

/// Builds the book in a folder.
///
/// # Errors
/// If mdBook cannot be installed or fails, or a chapter cannot be read.
pub fn build(project: &Project, folder: &Path) -> Result<()> {
    let source = project.root().join("target/book");
    files::remove(&source)?;
    write(project, &source)?;
    run(command(mdbook(project)?).arg("build").arg(&source).arg("--dest-dir").arg(folder))
}

/// mdBook, which is installed on the first call.
fn mdbook(project: &Project) -> Result<PathBuf> {
    let folder = project.tools().join("mdbook");
    let program = folder.join("bin/mdbook");
    let version = output(command(&program).arg("--version")).unwrap_or_default();
    if version != format!("mdbook v{MDBOOK}") {
        println!("Installing mdBook {MDBOOK}, once, for a few minutes");
        let mut cargo = command("cargo");
        cargo.args(["install", "mdbook", "--locked", "--version", MDBOOK]);
        cargo.args(["--no-default-features", "--features", "search", "--root"]).arg(&folder);
        run(&mut cargo)?;
    }
    Ok(program)
}

/// Writes mdBook's settings and the chapters.
fn write(project: &Project, folder: &Path) -> Result<()> {
    files::write(&folder.join("book.toml"), SETTINGS)?;
    files::write(&folder.join("site.css"), include_str!("book.css"))?;
    files::write(&folder.join("site.js"), include_str!("book.js"))?;
    let source = folder.join("src");
    let mut summary = String::new();
    for (index, (title, file)) in CHAPTERS.iter().enumerate() {
        summary += &match (index, *file) {
            (0, file) => format!("[{title}]({file})\n"),
            (_, "") => format!("\n# {title}\n\n"),
            (_, file) => format!("- [{title}]({})\n", file.replace(".ipynb", ".md")),
        };
        if !file.is_empty() {
            write_chapter(project, file, &source).with_context(|| (*file).to_owned())?;
        }
    }
    files::write(&source.join("SUMMARY.md"), &summary)?;
    copy(&project.root().join("docs"), &source.join("docs"), &["png", "svg", "ipynb"])?;
    // A reader's own notebooks may lie beside the project's, which their chapters bring.
    copy(&project.root().join("notebooks"), &source.join("notebooks"), &["png", "svg", "py"])
}

fn write_chapter(project: &Project, file: &str, source: &Path) -> Result<()> {
    let (from, to) = (project.root().join(file), source.join(file));
    let text = fs::read_to_string(&from)?;
    if !file.ends_with(".ipynb") {
        return files::write(&to, &links(&text));
    }
    files::write(&to, &text)?;
    let name = to.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let page = chapter(&name, &Notebook::parse(&text)?)?;
    let download =
        format!("<p><a href=\"{name}.ipynb\" download>Download this notebook</a></p>\n\n");
    files::write(&to.with_extension("md"), &(download + &page.markdown))?;
    for (file, content) in page.files {
        fs::write(to.with_file_name(file), content)?;
    }
    Ok(())
}

/// Copies the files with one of some extensions: pictures, and what is there to download.
fn copy(from: &Path, to: &Path, extensions: &[&str]) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        if path.extension().is_some_and(|it| extensions.iter().any(|own| it == *own)) {
            fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
        }
    }
    Ok(())
}
