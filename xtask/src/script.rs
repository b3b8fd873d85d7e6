//! Converts a notebook into an ordinary Rust program that needs neither Jupyter nor evcxr.
//!
//! Each program is a package under `target/script`. The cells' code is copied in order and
//! unchanged into the body of one function, where Rust's rules give the same result as evcxr: a
//! variable shadows an earlier one, and an item may be used before its definition. When a cell
//! redefines an item, a new block starts, in which it shadows the old one. The value of a cell's
//! last expression is printed, and figures are saved to files. Commands for evcxr and the shell,
//! which can only stand above a cell's code, become comments, except `:dep`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use syn::spanned::Spanned;
use syn::{Block, Item, Stmt, UseTree};
use toml::{Table, Value};

use crate::notebook::{CodeCell, Notebook, folder, is_command, start_of_code};
use crate::process::{self, command, run};
use crate::project::Project;
use warm_evcxr::files;
use warm_evcxr::template::parse_dependency;

/// The crate whose figures are saved.
const SUPPORT: &str = "mnist-notebook-support";
/// The beginning of every program.
const HEAD: &str = include_str!("script/head.rs");
/// Code for programs with figures.
const FIGURES: &str = include_str!("script/figures.rs");
/// The replacement for programs without figures.
const NO_FIGURES: &str = "
/// This notebook has no figures.
trait SaveFigure {
    fn save_figure(&self) {}
}

impl<T> SaveFigure for T {}
";

/// The programs of several notebooks: a Cargo workspace with a package for each.
pub struct Scripts {
    folder: PathBuf,
    target: PathBuf,
    names: Vec<String>,
}

impl Scripts {
    /// Writes the programs of these notebooks.
    ///
    /// # Errors
    /// If a notebook cannot be read or a cell is not valid Rust; the message names the cell.
    pub fn write(project: &Project, notebooks: &[PathBuf]) -> Result<Self> {
        let target = project.root().join("target");
        let folder = target.join("script");
        let mut names = Vec::new();
        for path in notebooks {
            let name = name(path)?;
            let program = Program::new(path)
                .with_context(|| format!("cannot convert {} into a program", path.display()))?;
            let package = folder.join(&name);
            files::write(&package.join("Cargo.toml"), &program.manifest(&name)?)?;
            files::write(&package.join("src/main.rs"), &program.source(&name))?;
            names.push(name);
        }
        let manifest = workspace_manifest(project, &names)?;
        files::write(&folder.join("Cargo.toml"), &manifest)?;
        fs::copy(project.root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
        Ok(Self { folder, target, names })
    }

    /// The source of a notebook's program.
    pub fn source(&self, index: usize) -> PathBuf {
        self.folder.join(&self.names[index]).join("src/main.rs")
    }

    /// Runs `cargo check` on all programs.
    ///
    /// # Errors
    /// If one does not compile; the compiler has printed why.
    pub fn check(&self) -> Result<()> {
        run(&mut self.cargo("check")).context("the cells of a notebook do not compile")
    }

    /// Builds all programs and returns their paths.
    ///
    /// # Errors
    /// If one does not compile; the compiler has printed why.
    pub fn build(&self) -> Result<Vec<PathBuf>> {
        println!("Compiling (a few minutes the first time)");
        let programs = process::build(&mut self.cargo("build"))
            .context("the cells of a notebook do not compile")?;
        Ok(programs.into_iter().map(|(_, program)| program).collect())
    }

    /// A Cargo command for all programs. It uses the project's build folder, to reuse what is
    /// compiled there.
    fn cargo(&self, subcommand: &str) -> Command {
        let mut cargo = command("cargo");
        cargo.args([subcommand, "--quiet", "--workspace", "--target-dir"]).arg(&self.target);
        cargo.current_dir(&self.folder);
        cargo
    }
}

/// Writes the programs of all notebooks and checks them: finds cells that do not compile within a
/// minute.
///
/// # Errors
/// Those of [`Scripts::write`] and [`Scripts::check`].
pub fn check_all(project: &Project) -> Result<()> {
    println!("Compiling the cells of all notebooks");
    Scripts::write(project, &project.notebook_files()?)?.check()
}

/// The notebook's name as a valid package name.
fn name(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    let stem = stem.context("the notebook's file name is missing or not UTF-8")?;
    let plain = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
    Ok(stem.chars().map(plain).collect())
}

/// A workspace for all programs. It has the project's profiles, to reuse what is compiled for it.
fn workspace_manifest(project: &Project, names: &[String]) -> Result<String> {
    let text = fs::read_to_string(project.root().join("Cargo.toml"))?;
    let mut profiles = text.parse::<Table>()?.remove("profile");
    if let Some(packages) = profiles.as_mut().and_then(|all| all.get_mut("dev")?.get_mut("package"))
    {
        // Settings for the project's own packages do not apply here.
        let packages = packages.as_table_mut().context("`profile.dev.package` is not a table")?;
        packages.retain(|package, _| package == "*");
    }
    let members: Value =
        names.iter().map(|name| Value::from(name.as_str())).collect::<Vec<_>>().into();
    let workspace: Table =
        [("members".into(), members), ("resolver".into(), "3".into())].into_iter().collect();
    let mut manifest: Table = [("workspace".into(), workspace.into())].into_iter().collect();
    manifest.extend(profiles.map(|profiles| ("profile".into(), profiles)));
    Ok(manifest.to_string())
}

/// The program made from a notebook's cells.
#[derive(Default)]
struct Program {
    dependencies: Table,
    body: String,
    /// Items that the innermost block defines or imports.
    items: HashSet<String>,
    /// The number of open blocks in the body.
    open_blocks: usize,
}

impl Program {
    fn new(notebook: &Path) -> Result<Self> {
        let mut program = Self::default();
        let folder = folder(notebook)?;
        for cell in Notebook::read_rust(notebook)?.code_cells() {
            program.add_cell(&cell, &folder).with_context(|| {
                format!("cell {} (id {}, under “{}”)", cell.number, cell.id, cell.title)
            })?;
        }
        Ok(program)
    }

    fn add_cell(&mut self, cell: &CodeCell, folder: &Path) -> Result<()> {
        self.body += &format!("\n// Cell {} · {}\n", cell.number, cell.title);
        let (commands, code) = split_commands(&cell.source);
        for command in commands {
            if let Some(dependency) = command.strip_prefix(":dep ") {
                let (name, spec) = parse_dependency(dependency, folder)
                    .with_context(|| format!("`{command}` is not a valid dependency"))?;
                self.dependencies.insert(name, spec);
            } else {
                self.body += &format!("// Left out: {command}\n");
                println!("Left out of the program: `{command}` in cell {}", cell.number);
            }
        }
        if cell.raises {
            self.body += "// Left out: it shows a failure on purpose.\n";
        } else {
            self.add_code(&code)?;
        }
        Ok(())
    }

    /// Appends a cell's statements unchanged, except that the last expression is shown.
    fn add_code(&mut self, code: &str) -> Result<()> {
        // syn parses statements only within a block. Byte positions refer to this text.
        let text = format!("{{{code}\n}}");
        let block: Block = syn::parse_str(&text).map_err(|error| {
            let at = error.span().start();
            anyhow!("line {}, column {}: {error}", at.line, at.column)
        })?;
        let names: Vec<String> = block.stmts.iter().flat_map(defined_names).collect();
        if names.iter().any(|name| self.items.contains(name)) {
            self.body += "{\n";
            self.open_blocks += 1;
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

    fn has_figures(&self) -> bool {
        self.dependencies.contains_key(SUPPORT)
    }

    fn source(&self, name: &str) -> String {
        format!(
            "//! The notebook `{name}` as a program, made by `cargo xtask script`.\n{HEAD}{}\n\
             fn cells() -> Result<(), Box<dyn std::error::Error>> {{\n{}{}\nOk(())\n}}\n",
            if self.has_figures() { FIGURES } else { NO_FIGURES },
            self.body,
            "}\n".repeat(self.open_blocks),
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

/// Splits a cell into evcxr commands and code, in which blank lines replace the commands.
fn split_commands(source: &str) -> (Vec<&str>, String) {
    let (head, code) = source.split_at(start_of_code(source));
    let blank = |line| if is_command(line) { "" } else { line };
    let rest: String = head.lines().map(|line| format!("{}\n", blank(line))).collect();
    (head.lines().filter(|line| is_command(line)).map(str::trim).collect(), rest + code)
}

/// The names of the items that a statement defines or imports.
fn defined_names(statement: &Stmt) -> Vec<String> {
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
        Item::Use(item) => return imported_names(&item.tree),
        _ => return Vec::new(),
    };
    vec![ident.to_string()]
}

/// The names that a `use` imports, except by `*`: glob imports may be shadowed anyway.
fn imported_names(tree: &UseTree) -> Vec<String> {
    match tree {
        UseTree::Path(path) => imported_names(&path.tree),
        UseTree::Name(name) => vec![name.ident.to_string()],
        UseTree::Rename(rename) if rename.rename != "_" => vec![rename.rename.to_string()],
        UseTree::Group(group) => group.items.iter().flat_map(imported_names).collect(),
        UseTree::Rename(_) | UseTree::Glob(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use serde_json::json;

    use super::*;
    use crate::process::output;

    /// The program of a notebook with these cells.
    fn program(cells: &[&str]) -> Result<Program> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.ipynb");
        let cell = |(number, source): (i32, &&str)| {
            let id = format!("c{number}");
            json!({"cell_type": "code", "id": id, "source": source})
        };
        let cells: Vec<_> = (1..).zip(cells).map(cell).collect();
        fs::write(&path, json!({"cells": cells}).to_string()).unwrap();
        Program::new(&path)
    }

    /// Compiles the program of these cells.
    fn build_cells(cells: &[&str], folder: &Path) -> Command {
        let (source, built) = (folder.join("main.rs"), folder.join("main"));
        fs::write(&source, program(cells).unwrap().source("small")).unwrap();
        output(command("rustc").args(["--edition", "2024", "-o"]).arg(&built).arg(&source))
            .unwrap();
        command(built)
    }

    /// Runs the program of these cells and returns its output.
    fn run_cells(cells: &[&str]) -> String {
        let folder = tempfile::tempdir().unwrap();
        output(&mut build_cells(cells, folder.path())).unwrap()
    }

    #[test]
    fn lines_that_cannot_be_written_do_not_end_a_program() {
        let folder = tempfile::tempdir().unwrap();
        let cell = "for i in 0..100_000 {\n    println!(\"line {i}\");\n}\nprintln!();\n\"shown\"";
        let mut program = build_cells(&[cell], folder.path());
        let mut running = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(running.stdout.take()); // as `head` does
        let output = running.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
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
    fn new_definitions_shadow_old_ones() {
        let printed = run_cells(&[
            "use std::collections::BTreeMap;\nfn f() -> u32 { 1 }\nlet a: u32 = f();",
            "use std::collections::BTreeMap;\nfn f() -> u32 { 2 }\n\
             let b: BTreeMap<u32, u32> = [(a, f())].into();",
            "let a: &str = \"new\";\nstruct Shown;\n\
             impl Shown { fn evcxr_display(&self) { println!(\"itself\") } }\nShown",
            "(a, b)",
        ]);
        assert_eq!(printed, "itself\n(\"new\", {1: 2})");
    }

    #[test]
    fn dep_lines_become_dependencies_and_other_commands_are_named() {
        let cell = ":dep one = \"1.2\"\n// a remark\n:dep two\n:opt 2\n!ls\n\nlet a: u32 = 1;";
        let program = program(&[cell]).unwrap();
        let manifest: Table = program.manifest("small").unwrap().parse().unwrap();
        assert_eq!(manifest["dependencies"]["one"].as_str(), Some("1.2"));
        assert_eq!(manifest["dependencies"]["two"].as_str(), Some("*"));
        let source = program.source("small");
        assert!(source.contains("// Left out: :opt 2\n// Left out: !ls\n"), "{source}");
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
    fn syntax_errors_name_the_cell_and_line() {
        let error = format!("{:#}", program(&["1", "let a = 1;\nlet = 2;"]).err().unwrap());
        assert!(error.contains("cell 2 (id c2") && error.contains("line 2, column 4"), "{error}");
        let below = "// a remark\n:dep one\n\nlet a = 1;\nlet = 2;";
        let error = format!("{:#}", program(&[below]).err().unwrap());
        assert!(error.contains("line 5, column 4"), "{error}");
    }
}
