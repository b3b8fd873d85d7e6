//! Limits what rust-analyzer reads to the crates near a notebook's cells.
//!
//! evcxr infers the types of variables with rust-analyzer, which reads the source of every crate
//! that it knows of at each start. Cells name types from the crates that they depend on and types
//! that those expose; the hundreds of crates below take most of the time.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::Value;

/// Crates of a registry further than this from the cells are dropped. Those in a folder of their
/// own, as in the notebook's project, are few and expose one another's types: they are kept.
const MAX_DISTANCE: usize = 2;
/// The name of the package that evcxr writes for each cell.
const CELL_PACKAGE: &str = "ctx";

/// Reduces the output of `cargo metadata` for a cell's package to the nearby crates. Any other
/// output is returned unchanged.
pub fn near(output: &str) -> String {
    let Ok(mut metadata) = serde_json::from_str::<Value>(output) else {
        return output.to_owned();
    };
    let Some(kept) = near_packages(&metadata) else {
        return output.to_owned();
    };
    let is_kept = |id: &Value| id.as_str().is_some_and(|id| kept.contains(id));
    retain(&mut metadata["packages"], |package| is_kept(&package["id"]));
    retain(&mut metadata["resolve"]["nodes"], |node| is_kept(&node["id"]));
    for node in metadata["resolve"]["nodes"].as_array_mut().into_iter().flatten() {
        retain(&mut node["deps"], |dependency| is_kept(&dependency["pkg"]));
        retain(&mut node["dependencies"], is_kept);
    }
    metadata.to_string()
}

fn retain(list: &mut Value, is_kept: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(is_kept);
    }
}

/// The identifiers of the nearby packages; `None` if the root is not a cell's package.
fn near_packages(metadata: &Value) -> Option<HashSet<String>> {
    let packages: HashMap<&str, &Value> = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let root = metadata["resolve"]["root"].as_str()?;
    if packages.get(root)?["name"] != CELL_PACKAGE {
        return None;
    }
    let mut kept = HashSet::from([root.to_owned()]);
    let mut next = VecDeque::from([(root, 0)]);
    while let Some((id, distance)) = next.pop_front() {
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten().filter(|it| is_normal(it)) {
            let Some(id) = dependency["pkg"].as_str() else { continue };
            let Some(package) = packages.get(id).filter(|it| !is_proc_macro(it)) else { continue };
            let is_near = distance < MAX_DISTANCE || package["source"].is_null();
            if is_near && kept.insert(id.to_owned()) {
                next.push_back((id, distance + 1));
            }
        }
    }
    Some(kept)
}

fn by_id(list: &Value) -> HashMap<&str, &Value> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| Some((item["id"].as_str()?, item))).collect()
}

/// Whether this is a normal dependency, not only one of tests or a build script.
fn is_normal(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

/// Whether a package is a procedural macro, which evcxr's rust-analyzer does not run.
fn is_proc_macro(package: &Value) -> bool {
    let mut targets = package["targets"].as_array().into_iter().flatten();
    targets
        .any(|target| target["kind"].as_array().is_some_and(|k| k.contains(&"proc-macro".into())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The metadata of a chain of packages, each a dependency of the one before. They are of a
    /// registry, but for those with a name that starts with "own".
    fn chain(names: &[&str]) -> Value {
        let packages = names.iter().map(|name| {
            let source = (!name.starts_with("own")).then_some("registry");
            json!({"id": name, "name": name, "source": source, "targets": []})
        });
        let nodes = (0..names.len()).map(|i| {
            let next = names.get(i + 1);
            let deps = next.map(|name| json!({"pkg": name, "dep_kinds": [{"kind": null}]}));
            json!({"id": names[i], "deps": deps.iter().collect::<Vec<_>>(),
                "dependencies": next.into_iter().collect::<Vec<_>>()})
        });
        json!({
            "packages": packages.collect::<Vec<_>>(),
            "resolve": {"root": names[0], "nodes": nodes.collect::<Vec<_>>()},
        })
    }

    fn names(metadata: &str) -> Vec<String> {
        let metadata: Value = serde_json::from_str(metadata).unwrap();
        let packages = metadata["packages"].as_array().unwrap();
        packages.iter().map(|package| package["name"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn distant_crates_are_dropped() {
        let reduced = near(&chain(&["ctx", "one", "two", "three"]).to_string());
        assert_eq!(names(&reduced), ["ctx", "one", "two"]);
        assert!(!reduced.contains("three"), "{reduced}");
    }

    #[test]
    fn crates_in_folders_are_kept_at_any_distance() {
        let own = ["ctx", "own 1", "own 2", "own 3"];
        assert_eq!(names(&near(&chain(&own).to_string())), own);
        let below = chain(&["ctx", "own 1", "own 2", "own 3", "four"]);
        assert_eq!(names(&near(&below.to_string())), own);
    }

    #[test]
    fn proc_macros_and_build_dependencies_are_dropped() {
        let mut metadata = chain(&["ctx", "one", "two"]);
        metadata["packages"][1]["targets"] = json!([{"kind": ["proc-macro"]}]);
        assert_eq!(names(&near(&metadata.to_string())), ["ctx"]);
        let mut metadata = chain(&["ctx", "one", "two"]);
        metadata["resolve"]["nodes"][0]["deps"][0]["dep_kinds"] = json!([{"kind": "build"}]);
        assert_eq!(names(&near(&metadata.to_string())), ["ctx"]);
    }

    #[test]
    fn other_packages_and_other_output_are_unchanged() {
        for output in ["not JSON", &chain(&["std", "core", "deep", "deeper"]).to_string()] {
            assert_eq!(near(output), output);
        }
    }
}
