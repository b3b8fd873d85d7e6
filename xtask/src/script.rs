//! A notebook as an ordinary Rust program: what its cells do, without Jupyter and without evcxr.
//!
//! The program of a notebook is a package of its own under `target/script`. All cells stand, in their order and with
//! their own text, in the body of one function. There Rust's own rules do what evcxr does: a variable shadows the one
//! before it, an item may stand below its use, and for an item that a cell defines anew a block begins, in which the
//! new one shadows the old. What evcxr would show of a cell's last expression is printed; figures go to files.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use syn::spanned::Spanned;
use syn::{Block, Item, Stmt, UseTree};
use toml::{Table, Value};

use crate::notebook::{CodeCell, Notebook, folder, is_command, start_of_code};
use crate::process::{command, run};
use crate::process;
use crate::project::Project;
use warm_evcxr::files;
use warm_evcxr::template::parse_dependency;

/// The crate whose figures are saved.
const SUPPORT: &str = "mnist-notebook-support";
/// What every program begins with.
const HEAD: &str = include_str!("script/head.rs");
/// What a program that draws begins with, too.
const FIGURES: &str = include_str!("script/figures.rs");
/// The same for one that does not.
const NO_FIGURES: &str = "
/// This notebook draws nothing.
trait SaveFigure {
    fn save_figure(&self) {}
}

impl<T> SaveFigure for T {}
";

/// The programs of some notebooks: a Cargo workspace with a package for each.
pub struct Scripts {
    folder: PathBuf,
    target: PathBuf,
    names: Vec<String>,
}

impl Scripts {
    /// Writes the programs of these notebooks.
    ///
    /// # Errors
    /// When a notebook cannot be read or a cell is no Rust; the message names the cell.
    pub fn write(project: &Project, notebooks: &[PathBuf]) -> Result<Self> {
        let target = project.root().join("target");
        let folder = target.join("script");
        let mut names = Vec::new();
        for path in notebooks {
            let name = name(path)?;
            let program = Program::new(path)
                .with_context(|| format!("{} does not become a program", path.display()))?;
            let package = folder.join(&name);
            write_if_changed(&package.join("Cargo.toml"), &program.manifest(&name)?)?;
            write_if_changed(&package.join("src/main.rs"), &program.source(&name))?;
            names.push(name);
        }
        let manifest = workspace_manifest(project, &names)?;
        write_if_changed(&folder.join("Cargo.toml"), &manifest)?;
        fs::copy(project.root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
        Ok(Self { folder, target, names })
    }

    /// The source of a notebook's program.
    pub fn source(&self, index: usize) -> PathBuf {
        self.folder.join(&self.names[index]).join("src/main.rs")
    }

    /// Compiles all programs as far as errors can show.
    ///
    /// # Errors
    /// When one does not compile; the compiler has said why.
    pub fn check(&self) -> Result<()> {
        run(&mut self.cargo("check")).context("the cells of a notebook do not compile")
    }

    /// Builds all programs and returns their paths.
    ///
    /// # Errors
    /// When one does not compile; the compiler has said why.
    pub fn build(&self) -> Result<Vec<PathBuf>> {
        let programs = process::build(&mut self.cargo("build"))
            .context("the cells of a notebook do not compile")?;
        Ok(programs.into_iter().map(|(_, program)| program).collect())
    }

    /// Cargo, to do something with all programs. They share the project's build folder, and so what is compiled there
    /// already.
    fn cargo(&self, what: &str) -> Command {
        let mut cargo = command("cargo");
        cargo.args([what, "--quiet", "--workspace", "--target-dir"]).arg(&self.target);
        cargo.current_dir(&self.folder);
        cargo
    }
}

/// Writes the programs of all notebooks and compiles them: a cell that no longer does is found within a minute.
///
/// # Errors
/// Those of [`Scripts::write`] and [`Scripts::check`].
pub fn check_all(project: &Project) -> Result<()> {
    println!("Compiling the cells of all notebooks");
    Scripts::write(project, &project.notebook_files()?)?.check()
}

/// The notebook's name in the form that Cargo wants.
fn name(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str()).context("a notebook has a name")?;
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    Ok(stem.chars().map(plain).collect())
}

/// Cargo builds anew what is newer than its result.
fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
    files::write(path, text)
}

/// One workspace for all programs, with the project's profiles: so they share what is compiled for it already.
fn workspace_manifest(project: &Project, names: &[String]) -> Result<String> {
    let text = fs::read_to_string(project.root().join("Cargo.toml"))?;
    let mut profiles = text.parse::<Table>()?.remove("profile");
    if let Some(packages) = profiles.as_mut().and_then(|all| all.get_mut("dev")?.get_mut("package"))
    {
        // What the project says of its own packages has no place here.
        packages.as_table_mut().context("a table")?.retain(|package, _| package == "*");
    }
    let members: Value =
        names.iter().map(|name| Value::from(name.as_str())).collect::<Vec<_>>().into();
    let workspace: Table =
        [("members".into(), members), ("resolver".into(), "3".into())].into_iter().collect();
    let mut manifest: Table = [("workspace".into(), workspace.into())].into_iter().collect();
    manifest.extend(profiles.map(|profiles| ("profile".into(), profiles)));
    Ok(manifest.to_string())
}

/// What a notebook's cells come to.
#[derive(Default)]
struct Program {
    dependencies: Table,
    body: String,
    /// Items that the innermost block defines or imports.
    items: HashSet<String>,
    /// Blocks that are open in the body.
    open: usize,
}

impl Program {
    fn new(notebook: &Path) -> Result<Self> {
        let mut program = Self::default();
        let folder = folder(notebook)?;
        for cell in Notebook::read_rust(notebook)?.code_cells() {
            program.cell(&cell, &folder).with_context(|| {
                format!("cell {} (id {}, under “{}”)", cell.number, cell.id, cell.title)
            })?;
        }
        Ok(program)
    }

    fn cell(&mut self, cell: &CodeCell, folder: &Path) -> Result<()> {
        let (commands, code) = head_and_code(&cell.source);
        for command in commands {
            if let Some(dependency) = command.strip_prefix(":dep ") {
                let (name, wanted) = parse_dependency(dependency, folder)
                    .with_context(|| format!("`{command}` names no dependency"))?;
                self.dependencies.insert(name, wanted);
            }
        }
        self.body += &format!("\n// Cell {} · {}\n", cell.number, cell.title);
        match cell.raises {
            true => self.body += "// Left out: it shows a failure on purpose.\n",
            false => self.code(&code)?,
        }
        Ok(())
    }

    /// Appends the statements of a cell as they stand there.
    fn code(&mut self, code: &str) -> Result<()> {
        // The braces make statements of it; byte positions are those of this text.
        let text = format!("{{{code}\n}}");
        let block: Block = syn::parse_str(&text).map_err(|error| {
            let at = error.span().start();
            anyhow!("line {}, column {}: {error}", at.line, at.column)
        })?;
        let names: Vec<String> = block.stmts.iter().flat_map(defined).collect();
        if names.iter().any(|name| self.items.contains(name)) {
            self.body += "{\n";
            self.open += 1;
            self.items.clear();
        }
        self.items.extend(names);
        match block.stmts.last() {
            Some(Stmt::Expr(value, None)) => {
                let range = value.span().byte_range();
                self.body += text[1..range.start].trim_start_matches('\n');
                self.body += &format!("show!({});", &text[range.clone()]);
                self.body += text[range.end..].strip_suffix('}').unwrap_or_default();
            }
            _ => self.body += &format!("{}\n", code.trim_start_matches('\n')),
        }
        Ok(())
    }

    fn draws(&self) -> bool {
        self.dependencies.contains_key(SUPPORT)
    }

    fn source(&self, name: &str) -> String {
        format!(
            "//! The notebook `{name}` as a program, made by `cargo xtask script`.\n{HEAD}{}\n\
             fn cells() -> Result<(), Box<dyn std::error::Error>> {{\n{}{}\nOk(())\n}}\n",
            if self.draws() { FIGURES } else { NO_FIGURES },
            self.body,
            "}\n".repeat(self.open),
        )
        .replace("{name}", name)
    }

    fn manifest(&self, name: &str) -> Result<String> {
        let mut manifest = Table::new();
        let package: Table = toml::from_str(&format!(
            "name = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false"
        ))?;
        manifest.insert("package".into(), package.into());
        manifest.insert("dependencies".into(), self.dependencies.clone().into());
        Ok(manifest.to_string())
    }
}

/// What a cell says to evcxr, and the same cell with blank lines in its place.
fn head_and_code(source: &str) -> (Vec<&str>, String) {
    let (head, code) = source.split_at(start_of_code(source));
    let blank = |line| if is_command(line) { "" } else { line };
    let rest: String = head.lines().map(|line| format!("{}\n", blank(line))).collect();
    (head.lines().filter(|line| is_command(line)).map(str::trim).collect(), rest + code)
}

/// The names of what a statement defines or imports for others, variables aside.
fn defined(statement: &Stmt) -> Vec<String> {
    let Stmt::Item(item) = statement else {
        return Vec::new();
    };
    let ident = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Mod(item) => &item.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::TraitAlias(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Use(item) => return imported(&item.tree),
        _ => return Vec::new(),
    };
    vec![ident.to_string()]
}

/// The names that a `use` brings; those of a `*` give way to others by themselves.
fn imported(tree: &UseTree) -> Vec<String> {
    match tree {
        UseTree::Path(path) => imported(&path.tree),
        UseTree::Name(name) => vec![name.ident.to_string()],
        UseTree::Rename(rename) if rename.rename != "_" => vec![rename.rename.to_string()],
        UseTree::Group(group) => group.items.iter().flat_map(imported).collect(),
        UseTree::Rename(_) | UseTree::Glob(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::process::output;

    /// The program of a notebook with these cells.
    fn program(cells: &[&str]) -> Result<Program> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.ipynb");
        let cells: Vec<_> = (1..)
            .zip(cells)
            .map(|(id, source)| json!({"cell_type": "code", "id": format!("c{id}"), "source": source}))
            .collect();
        fs::write(&path, json!({"cells": cells}).to_string()).unwrap();
        Program::new(&path)
    }

    /// What the program prints.
    fn run_cells(cells: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let (source, built) = (folder.path().join("main.rs"), folder.path().join("main"));
        fs::write(&source, program(cells).unwrap().source("small")).unwrap();
        output(command("rustc").args(["--edition", "2024", "-o"]).arg(&built).arg(&source))
            .unwrap();
        output(&mut command(built)).unwrap()
    }

    #[test]
    fn cells_run_in_order_and_last_expressions_are_shown() {
        let printed = run_cells(&[
            "let a: u32 = \"41\".parse()?;\nprintln!(\"parsed\");",
            "fn next(a: u32) -> u32 {\n    a + 1\n}\n\nnext(a) // the answer",
            "for i in 0..2 {\n    println!(\"{i}\");\n}",
            "format!(\"as {}\", \"text\")",
        ]);
        assert_eq!(printed, "parsed\n42\n0\n1\n\"as text\"");
    }

    #[test]
    fn what_is_defined_anew_shadows_what_was_there() {
        let printed = run_cells(&[
            "use std::collections::BTreeMap;\nfn f() -> u32 { 1 }\nlet a: u32 = f();",
            "use std::collections::BTreeMap;\nfn f() -> u32 { 2 }\nlet b: BTreeMap<u32, u32> = [(a, f())].into();",
            "let a: &str = \"new\";\nstruct Shown;\nimpl Shown { fn evcxr_display(&self) { println!(\"itself\") } }\nShown",
            "(a, b)",
        ]);
        assert_eq!(printed, "itself\n(\"new\", {1: 2})");
    }

    #[test]
    fn dep_lines_become_dependencies_and_other_commands_nothing() {
        let cell = ":dep one = \"1.2\"\n// a remark\n:dep two\n:opt 2\n\nlet a: u32 = 1;";
        let program = program(&[cell]).unwrap();
        let manifest: Table = program.manifest("small").unwrap().parse().unwrap();
        assert_eq!(manifest["dependencies"]["one"].as_str(), Some("1.2"));
        assert_eq!(manifest["dependencies"]["two"].as_str(), Some("*"));
        assert!(!program.source("small").contains(":opt"));
    }

    #[test]
    fn only_lines_above_the_first_line_of_code_are_commands() {
        let text = "# Title\n\n![a figure](loss.png)\n: a definition\n!important\nend";
        let printed = run_cells(&[
            &format!("let text: &str = r#\"{text}\"#;\nprintln!(\"{{text}}\");"),
            "let ready: bool = false;\nlet ok: bool =\n!ready;\nprintln!(\"{ok}\");",
        ]);
        assert_eq!(printed, format!("{text}\ntrue"));
    }

    #[test]
    fn a_cell_that_is_no_rust_is_named_with_its_line() {
        let error = format!("{:#}", program(&["1", "let a = 1;\nlet = 2;"]).err().unwrap());
        assert!(error.contains("cell 2 (id c2") && error.contains("line 2, column 4"), "{error}");
        let below = "// a remark\n:dep one\n\nlet a = 1;\nlet = 2;";
        let error = format!("{:#}", program(&[below]).err().unwrap());
        assert!(error.contains("line 5, column 4"), "{error}");
    }
}
