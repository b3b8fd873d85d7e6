//! The template: a build folder with all dependencies compiled, which slots are copied from.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::files;
use crate::pool::{Build, Pool, STAMP};
use crate::toolchain::{cargo, find, host, output, program_folders, run_cargo, tool};

/// What cells may request with `:dep`, as in the `[dependencies]` table of a manifest.
pub type Dependencies = Table;

/// Compiles `dependencies` in the pool's template as `build` says. Returns whether anything had to
/// be compiled.
///
/// Dependencies of earlier calls stay in the template.
///
/// # Errors
/// If something does not compile; the message includes Cargo's last lines.
pub fn warm(
    pool: &Pool,
    dependencies: &Dependencies,
    build: &Build,
    on_build: &(dyn Fn(&str) + Sync),
) -> Result<bool> {
    let guard = pool.template_lock()?;
    guard.lock()?;
    let template = pool.template();
    files::make_folder(&template.join("src"))?;
    files::write(&template.join("src/lib.rs"), "")?;
    let manifest = template.join("Cargo.toml");
    let old = fs::read_to_string(&manifest).unwrap_or_default();
    let mut all = all_dependencies(&old, dependencies);
    turn_on(build.features.iter().map(String::as_str), &mut all);
    files::write(&manifest, &manifest_of(&all)?)?;
    if let Some(lock) = &build.lock {
        fs::copy(lock, template.join("Cargo.lock"))
            .with_context(|| format!("cannot copy {}", lock.display()))?;
    }
    let has_changed = AtomicBool::new(false);
    let stamp = template.join(STAMP);
    let on_compile = |line: &str| {
        // The template's own crate is empty and does not count.
        if !line.starts_with("Compiling ctx ") {
            // If killed from here on, the template is incomplete.
            let _ = fs::remove_file(&stamp);
            has_changed.store(true, Ordering::Relaxed);
            on_build(line);
        }
    };
    let mut cargo = cargo_build(&template)?;
    cargo.envs(build.environment.iter().cloned());
    run_cargo(&mut cargo, &on_compile).context("cannot compile the notebooks' dependencies")?;
    let has_changed = has_changed.into_inner();
    if has_changed || !stamp.exists() {
        fetch(pool).context("cannot download the notebooks' dependencies")?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        files::write(&stamp, &format!("{}\n", now.as_nanos()))?;
    }
    Ok(has_changed)
}

/// Downloads what is not compiled, so that kernels start without a network: evcxr asks Cargo about
/// all packages, also those for other systems, and rust-analyzer about those of the standard
/// library. Without the latter it knows few types; so does it without the library's source.
fn fetch(pool: &Pool) -> Result<()> {
    output(cargo()?.arg("fetch").current_dir(pool.template()))?;
    let rustc = tool("rustc", &program_folders()?)?;
    let library = pool.folder().join("sysroot/lib/rustlib/src/rust/library/Cargo.toml");
    let mut fetch = cargo()?;
    fetch.args(["fetch", "--locked", "--target", &host(&rustc)?, "--manifest-path"]).arg(library);
    // The library's manifest uses features of Cargo that are not stable.
    let _ = output(fetch.env("RUSTC_BOOTSTRAP", "1"));
    Ok(())
}

/// `cargo build` with the options that evcxr uses for a cell.
fn cargo_build(folder: &Path) -> Result<std::process::Command> {
    let folders = program_folders()?;
    let rustc = tool("rustc", &folders)?;
    let mut flags = "-Cprefer-dynamic".to_owned();
    if find("mold", &folders).is_none() && find("lld", &folders).is_some() {
        flags += " -Clink-arg=-fuse-ld=lld";
    }
    let mut cargo = cargo()?;
    cargo
        .args(["build", "--target", &host(&rustc)?])
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", "target")
        .env("CARGO_BUILD_BUILD_DIR", "target")
        .env("RUSTFLAGS", flags);
    Ok(cargo)
}

/// The dependencies and those of the `old` manifest. New ones replace old ones, and old path
/// dependencies whose folder is gone are dropped.
fn all_dependencies(old: &str, new: &Dependencies) -> Dependencies {
    let mut all = old
        .parse::<Table>()
        .ok()
        .and_then(|mut manifest| manifest.remove("dependencies")?.as_table().cloned())
        .unwrap_or_default();
    all.retain(|_, spec| path_of(spec).is_none_or(|path| path.is_dir()));
    all.extend(new.clone());
    all
}

/// Turns features on, written `crate/feature`, in those of the dependencies that are such crates.
///
/// Not with Cargo's `--features`: the lock file is then without what only these features need, so
/// every build would ask the registry for it.
fn turn_on<'a>(features: impl IntoIterator<Item = &'a str>, dependencies: &mut Dependencies) {
    for (name, feature) in features.into_iter().filter_map(|it| it.split_once('/')) {
        let Some(spec) = dependencies.get_mut(name) else { continue };
        if let Value::String(version) = spec {
            *spec = Value::Table(Table::from_iter([("version".into(), version.as_str().into())]));
        }
        let Some(spec) = spec.as_table_mut() else { continue };
        let asked = spec.entry("features").or_insert_with(|| Value::Array(Vec::new()));
        let Some(asked) = asked.as_array_mut() else { continue };
        if !asked.iter().any(|it| it.as_str() == Some(feature)) {
            asked.push(feature.into());
        }
    }
}

/// Turns features on, separated by spaces, in a manifest that evcxr has written.
///
/// # Errors
/// If the manifest cannot be read or written.
pub(crate) fn turn_on_in_manifest(manifest: &Path, features: &str) -> Result<()> {
    let text = fs::read_to_string(manifest).context("cannot read the cells' Cargo.toml")?;
    let mut table: Table = text.parse().context("the cells' Cargo.toml is damaged")?;
    let before = table.clone();
    if let Some(Value::Table(dependencies)) = table.get_mut("dependencies") {
        turn_on(features.split_whitespace(), dependencies);
    }
    if table == before { Ok(()) } else { files::write(manifest, &table.to_string()) }
}

/// A manifest like those that evcxr writes.
fn manifest_of(dependencies: &Dependencies) -> Result<String> {
    let mut manifest: Table = toml::from_str(
        "[package]\nname = \"ctx\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\
         [lib]\ncrate-type = [\"cdylib\"]\n",
    )?;
    manifest.insert("dependencies".into(), dependencies.clone().into());
    Ok(manifest.to_string())
}

fn path_of(spec: &Value) -> Option<PathBuf> {
    Some(spec.get("path")?.as_str()?.into())
}

/// What a project's cells may request: the dependencies in its manifest and, if it is a library,
/// the project's own crate.
///
/// # Errors
/// If the manifest cannot be read, or inherits a dependency from a workspace.
pub fn dependencies_of(manifest: &Path) -> Result<Dependencies> {
    let read = || fs::read_to_string(manifest)?.parse::<Table>().map_err(anyhow::Error::from);
    let mut table = read().with_context(|| format!("cannot read {}", manifest.display()))?;
    let folder = manifest.parent().context("the manifest has no parent folder")?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let mut dependencies = match table.remove("dependencies") {
        Some(Value::Table(dependencies)) => dependencies,
        _ => Table::new(),
    };
    for (name, spec) in &mut dependencies {
        anyhow::ensure!(
            spec.get("workspace").is_none(),
            "`{name}` is inherited from a workspace: write its version in {}",
            manifest.display()
        );
        make_absolute(spec, folder)?;
    }
    let name = table.get("package").and_then(|package| package.get("name")?.as_str());
    let is_library = table.contains_key("lib") || folder.join("src/lib.rs").is_file();
    if let Some(name) = name.filter(|_| is_library) {
        let own: Table = [("path".to_owned(), Value::from("."))].into_iter().collect();
        let mut own = Value::from(own);
        make_absolute(&mut own, folder)?;
        dependencies.insert(name.to_owned(), own);
    }
    Ok(dependencies)
}

/// Parses a cell's `:dep name = …` line, without `:dep`, into a name and a specification. Relative
/// paths start at the notebook's `folder`.
///
/// # Errors
/// If the line is invalid or names a folder that does not exist.
pub fn parse_dependency(text: &str, folder: &Path) -> Result<(String, Value)> {
    let text = text.trim();
    let line = if text.contains('=') { text.to_owned() } else { format!("{text} = \"*\"") };
    let entry = line.parse::<Table>().ok().and_then(|table| table.into_iter().next());
    let (name, mut spec) = entry.with_context(|| format!("`:dep {text}` is not `name = …`"))?;
    make_absolute(&mut spec, folder)?;
    Ok((name, spec))
}

/// Makes a path absolute exactly as evcxr does: Cargo tells packages apart by their path.
fn make_absolute(spec: &mut Value, folder: &Path) -> Result<()> {
    if let Some(Value::String(path)) = spec.get_mut("path") {
        let absolute = fs::canonicalize(folder.join(&*path))
            .with_context(|| format!("cannot find the folder {path}"))?;
        *path = absolute.to_str().context("the project's path is not UTF-8")?.to_owned();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_keep_old_dependencies_unless_their_folder_is_gone() {
        let here = env!("CARGO_MANIFEST_DIR");
        let old = format!(
            "[dependencies]\na = \"1\"\nb = {{ path = \"{here}\" }}\n\
             c = {{ path = \"{here}/gone\" }}\n"
        );
        let new: Table = "a = \"2\"\nd = \"*\"".parse().unwrap();
        let all = all_dependencies(&old, &new);
        let manifest: Table = manifest_of(&all).unwrap().parse().unwrap();
        let dependencies = manifest["dependencies"].as_table().unwrap();
        let names: Vec<&str> = dependencies.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "b", "d"]);
        assert_eq!(dependencies["a"].as_str(), Some("2"));
    }

    #[test]
    fn features_are_turned_on_only_in_the_dependencies_that_have_them() {
        let features = "image/png rand/serde rand/log rand_core/std";
        for (before, after) in [
            ("", ""),
            ("my-rand = '1'\nrand-core = '1'", "my-rand = '1'\nrand-core = '1'"),
            ("rand = '1'", "rand = { version = '1', features = ['serde', 'log'] }"),
            (
                "rand = { path = '..', features = ['log', 'std'] }",
                "rand = { path = '..', features = ['log', 'std', 'serde'] }",
            ),
            ("[dependencies.image]\ngit = '..'", "image = { git = '..', features = ['png'] }"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let manifest = folder.path().join("Cargo.toml");
            let text = |dependencies: &str| format!("[dependencies]\n{dependencies}\n");
            let before = if before.starts_with('[') { before.to_owned() } else { text(before) };
            fs::write(&manifest, before).unwrap();
            turn_on_in_manifest(&manifest, features).unwrap();
            let found: Table = fs::read_to_string(&manifest).unwrap().parse().unwrap();
            assert_eq!(found, text(after).parse().unwrap());
        }
    }

    #[test]
    fn cells_may_request_a_library_and_its_dependencies() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let manifest = folder.join("Cargo.toml");
        let text = "[package]\nname = \"mine\"\n[lib]\n[dependencies]\n\
             near = { path = \"near\" }\nfar = \"1\"\n";
        fs::create_dir(folder.join("near")).unwrap();
        fs::write(&manifest, text).unwrap();
        let dependencies = dependencies_of(&manifest).unwrap();
        assert_eq!(dependencies["far"].as_str(), Some("1"));
        assert_eq!(path_of(&dependencies["near"]), Some(folder.join("near")));
        assert_eq!(path_of(&dependencies["mine"]), Some(folder.clone()));
    }

    #[test]
    fn dep_lines_are_parsed_as_evcxr_does() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (name, spec) = parse_dependency(" two", here).unwrap();
        assert_eq!((name.as_str(), spec.as_str()), ("two", Some("*")));
        let (_, spec) = parse_dependency("one = { path = \"src/..\" }", here).unwrap();
        assert_eq!(path_of(&spec), Some(here.canonicalize().unwrap()));
        let error = parse_dependency("one = { path = \"nowhere\" }", here).unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error:#}");
        assert!(parse_dependency("= 1", here).is_err());
    }
}
