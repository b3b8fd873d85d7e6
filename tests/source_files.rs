//! The files of a crate have no import cycles, so each can be understood from the files below it.
//! Cargo ensures the same between crates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Item, UseTree, Visibility};
use tests::{root, rust_files};

/// A module's path from the crate root; that of the root is empty.
type Module = Vec<String>;

/// The imports and re-exports of a crate.
#[derive(Default)]
struct Crate {
    /// For each file module, the paths within the crate that it mentions.
    mentions: BTreeMap<Module, BTreeSet<Module>>,
    /// Re-exports within the crate: the path of the name, and its origin.
    exports: BTreeMap<Module, Module>,
}

impl Crate {
    fn read(root: &Path) -> Self {
        let mut found = Self::default();
        found.read_file(root, Vec::new());
        found
    }

    fn read_file(&mut self, path: &Path, module: Module) {
        let text = fs::read_to_string(path).unwrap();
        let file = syn::parse_file(&text).unwrap();
        let (folder, stem) = (path.parent().unwrap(), path.file_stem().unwrap());
        let is_root = ["lib", "main", "mod"].iter().any(|name| *name == stem);
        let folder = if is_root { folder.to_owned() } else { folder.join(stem) };
        self.mentions.insert(module.clone(), BTreeSet::new());
        self.read_items(file.items, &module, &module, &folder);
    }

    /// Reads the items of a module that is in the file of the module `file`.
    fn read_items(&mut self, items: Vec<Item>, module: &Module, file: &Module, folder: &Path) {
        let children: BTreeSet<String> = items
            .iter()
            .filter_map(|item| match item {
                Item::Mod(child) => Some(child.ident.to_string()),
                _ => None,
            })
            .collect();
        let below = |name: &str| [module.as_slice(), &[name.to_owned()]].concat();
        for item in items.into_iter().filter(|item| !is_for_tests(item)) {
            match item {
                Item::Mod(child) => {
                    let name = child.ident.to_string();
                    match child.content {
                        Some((_, items)) => self.read_items(items, &below(&name), file, folder),
                        None => self.read_file(&file_of(folder, &name), below(&name)),
                    }
                }
                Item::Use(import) => {
                    let is_export = !matches!(import.vis, Visibility::Inherited);
                    for (path, name) in leaves(&import.tree) {
                        let Some(path) = absolute(&path, module, &children) else { continue };
                        if is_export {
                            self.exports.insert(below(&name), path);
                        } else {
                            self.mentions.get_mut(file).unwrap().insert(path);
                        }
                    }
                }
                other => {
                    for path in paths_in(other.to_token_stream()) {
                        if let Some(path) = absolute(&path, module, &children) {
                            self.mentions.get_mut(file).unwrap().insert(path);
                        }
                    }
                }
            }
        }
    }

    /// The file module where the item at a path is defined, following re-exports.
    fn origin(&self, path: &Module) -> &Module {
        for len in 1..=path.len() {
            // A module may have the same name as a function that it exports.
            if self.mentions.contains_key(&path[..len]) {
                continue;
            }
            if let Some(origin) = self.exports.get(&path[..len]) {
                return self.origin(&[origin, &path[len..]].concat());
            }
        }
        let modules = (0..=path.len()).rev().map(|len| &path[..len]);
        let (module, _) =
            modules.filter_map(|module| self.mentions.get_key_value(module)).next().unwrap();
        module
    }

    fn imports(&self, module: &Module) -> BTreeSet<&Module> {
        let imports = self.mentions[module].iter().map(|path| self.origin(path));
        imports.filter(|origin| *origin != module).collect()
    }

    /// An import cycle, if there is one.
    fn find_cycle(&self) -> Option<String> {
        let mut done = BTreeSet::new();
        self.mentions.keys().find_map(|module| self.cycle_from(module, &mut Vec::new(), &mut done))
    }

    fn cycle_from<'a>(
        &'a self,
        module: &'a Module,
        stack: &mut Vec<&'a Module>,
        done: &mut BTreeSet<&'a Module>,
    ) -> Option<String> {
        if let Some(start) = stack.iter().position(|before| *before == module) {
            let names = stack[start..].iter().chain([&module]);
            let name = |module: &&Module| match module.as_slice() {
                [] => "crate".to_owned(),
                path => path.join("::"),
            };
            return Some(names.map(name).collect::<Vec<_>>().join(" → "));
        }
        if done.contains(module) {
            return None;
        }
        stack.push(module);
        let found =
            self.imports(module).into_iter().find_map(|next| self.cycle_from(next, stack, done));
        stack.pop();
        done.insert(module);
        found
    }
}

fn file_of(folder: &Path, name: &str) -> PathBuf {
    let file = folder.join(name).with_extension("rs");
    if file.is_file() { file } else { folder.join(name).join("mod.rs") }
}

fn is_for_tests(item: &Item) -> bool {
    let attributes = match item {
        Item::Mod(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.to_token_stream().to_string().replace(' ', "") == "cfg(test)"
    })
}

/// The paths that a `use` imports, and their names.
fn leaves(tree: &UseTree) -> Vec<(Module, String)> {
    match tree {
        UseTree::Path(path) => {
            let first = path.ident.to_string();
            let rest = leaves(&path.tree).into_iter();
            rest.map(|(mut path, name)| {
                // `use a::{self}` and `use a::*` mention `a`.
                path.retain(|part| part != "self" && part != "*");
                let name = if name == "self" { first.clone() } else { name };
                path.insert(0, first.clone());
                (path, name)
            })
            .collect()
        }
        UseTree::Name(name) => vec![(vec![name.ident.to_string()], name.ident.to_string())],
        UseTree::Rename(name) => vec![(vec![name.ident.to_string()], name.rename.to_string())],
        UseTree::Glob(_) => vec![(vec!["*".into()], "*".into())],
        UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
    }
}

/// All paths of two or more segments in code.
fn paths_in(tokens: TokenStream) -> Vec<Module> {
    let mut paths = vec![Module::new()];
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => {
                if colons != 2 {
                    paths.push(Module::new());
                }
                paths.last_mut().unwrap().push(name.to_string());
                colons = 0;
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
            TokenTree::Group(group) => {
                // A `use` in a function.
                if colons == 2 && group.delimiter() == Delimiter::Brace {
                    let start = paths.last().unwrap().clone();
                    let within = paths_in(group.stream());
                    paths.extend(within.into_iter().map(|path| [start.clone(), path].concat()));
                } else {
                    paths.extend(paths_in(group.stream()));
                }
                colons = 0;
                paths.push(Module::new());
            }
            _ => {
                colons = 0;
                paths.push(Module::new());
            }
        }
    }
    paths.retain(|path| path.len() > 1);
    paths
}

/// A path from the crate root; `None` for paths to other crates and for local names.
fn absolute(path: &[String], module: &Module, children: &BTreeSet<String>) -> Option<Module> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "crate" => Some(rest.to_vec()),
        "self" => Some([module, rest].concat()),
        "super" => {
            let outer = module.split_last().map(|(_, outer)| outer.to_vec())?;
            match rest.first() {
                Some(next) if next == "super" => absolute(rest, &outer, children),
                _ => Some([&outer, rest].concat()),
            }
        }
        name if children.contains(name) => Some([module, path].concat()),
        _ => None,
    }
}

/// The workspace's crates.
fn crates() -> Vec<PathBuf> {
    let crates = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    crates.chain(["mnist-notebook-support", "xtask"].map(|name| root().join(name))).collect()
}

#[test]
fn there_are_no_import_cycles() {
    for folder in crates() {
        for root in ["src/lib.rs", "src/main.rs"].map(|root| folder.join(root)) {
            if root.is_file() {
                assert_eq!(Crate::read(&root).find_cycle(), None, "{}", root.display());
            }
        }
    }
}

#[test]
fn cycles_of_every_kind_are_found() {
    let found = |files: &[(&str, &str)]| {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Crate::read(&folder.path().join("lib.rs")).find_cycle()
    };
    let root = ("lib.rs", "mod a; mod b; mod c; pub use b::B;");
    let c = ("c/mod.rs", "pub(crate) mod d; pub fn c() {}");
    let d = ("c/d.rs", "pub fn d() {} #[cfg(test)] mod tests { use crate::a; }");
    let a = ("a.rs", "use crate::B; fn a() { crate::c::c() }");
    assert_eq!(found(&[root, a, ("b.rs", "pub struct B;"), c, d]), None);

    let through_a_reexport = Some("a → b → a".to_owned());
    assert_eq!(
        found(&[root, a, ("b.rs", "use super::a; pub struct B;"), c, d]),
        through_a_reexport
    );
    assert_eq!(found(&[root, a, ("b.rs", "fn b() { crate::a::a() }"), c, d]), through_a_reexport);
    let longer = Some("a → b → c::d → a".to_owned());
    let b = ("b.rs", "fn b() { use crate::c::{c, d::d}; }");
    assert_eq!(found(&[root, a, b, c, ("c/d.rs", "use super::super::a;")]), longer);
    let with_its_parent = Some("c → c::d → c".to_owned());
    let c = ("c/mod.rs", "mod d; pub fn c() { d::d() }");
    let b = ("b.rs", "pub struct B;");
    assert_eq!(found(&[root, a, b, c, ("c/d.rs", "use super::c;")]), with_its_parent);
}

#[test]
fn no_line_of_rust_exceeds_100_columns() {
    let folders = crates().into_iter().chain(["tests", "fuzz"].map(|name| root().join(name)));
    let mut long = Vec::new();
    for path in rust_files(folders) {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().zip(1..).filter(|(line, _)| line.chars().count() > 100);
        long.extend(lines.map(|(_, number)| format!("{}:{number}", path.display())));
    }
    assert_eq!(long, [""; 0]);
}
