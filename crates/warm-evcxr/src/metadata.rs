//! What rust-analyzer is told of a notebook's crates: those near the cells.
//!
//! evcxr infers the types of variables with rust-analyzer, which reads the source of every crate
//! that it knows of, at each start anew. A cell names types of the crates it depends on and of what
//! those hand out; what lies deeper is hundreds of crates and most of the time.

use std::collections::{HashMap, HashSet, VecDeque};

use serde_json::Value;

/// How far from the cells a crate may be: what they depend on, and what that depends on.
const FAR: usize = 2;
/// The name of the package that evcxr makes of each cell.
const CELL: &str = "ctx";

/// What `cargo metadata` said of a cell's package, with the near crates alone. Whatever else Cargo
/// said is left as it is.
pub fn near(said: &str) -> String {
    let Ok(mut metadata) = serde_json::from_str::<Value>(said) else {
        return said.to_owned();
    };
    let Some(kept) = near_packages(&metadata) else {
        return said.to_owned();
    };
    let is_kept = |id: &Value| id.as_str().is_some_and(|id| kept.contains(id));
    keep(&mut metadata["packages"], |package| is_kept(&package["id"]));
    keep(&mut metadata["resolve"]["nodes"], |node| is_kept(&node["id"]));
    for node in metadata["resolve"]["nodes"].as_array_mut().into_iter().flatten() {
        keep(&mut node["deps"], |dependency| is_kept(&dependency["pkg"]));
        keep(&mut node["dependencies"], is_kept);
    }
    metadata.to_string()
}

fn keep(list: &mut Value, which: impl Fn(&Value) -> bool) {
    if let Some(list) = list.as_array_mut() {
        list.retain(which);
    }
}

/// The identifiers of the near packages; none if this is no cell's package.
fn near_packages(metadata: &Value) -> Option<HashSet<String>> {
    let packages: HashMap<&str, &Value> = by_id(&metadata["packages"]);
    let nodes = by_id(&metadata["resolve"]["nodes"]);
    let root = metadata["resolve"]["root"].as_str()?;
    if packages.get(root)?["name"] != CELL {
        return None;
    }
    let mut kept = HashSet::from([root.to_owned()]);
    let mut next = VecDeque::from([(root, 0)]);
    while let Some((id, distance)) = next.pop_front() {
        let dependencies = nodes.get(id).and_then(|node| node["deps"].as_array());
        for dependency in dependencies.into_iter().flatten().filter(|_| distance < FAR) {
            let Some(id) = dependency["pkg"].as_str() else { continue };
            let is_seen = packages.get(id).is_some_and(|package| !is_macro(package));
            if is_seen && is_for_code(dependency) && kept.insert(id.to_owned()) {
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

/// Whether code uses a dependency, not only tests or a build script.
fn is_for_code(dependency: &Value) -> bool {
    let kinds = dependency["dep_kinds"].as_array();
    kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
}

/// Whether a package is a procedural macro, which evcxr's rust-analyzer does not run.
fn is_macro(package: &Value) -> bool {
    let mut targets = package["targets"].as_array().into_iter().flatten();
    targets
        .any(|target| target["kind"].as_array().is_some_and(|k| k.contains(&"proc-macro".into())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What Cargo would say of a chain of packages, each the dependency of the one before.
    fn chain(names: &[&str]) -> Value {
        let packages = names.iter().map(|name| json!({"id": name, "name": name, "targets": []}));
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
    fn crates_far_from_the_cells_are_left_out() {
        let told = near(&chain(&["ctx", "one", "two", "three"]).to_string());
        assert_eq!(names(&told), ["ctx", "one", "two"]);
        assert!(!told.contains("three"), "{told}");
    }

    #[test]
    fn macros_and_what_builds_need_are_left_out() {
        let mut metadata = chain(&["ctx", "one", "two"]);
        metadata["packages"][1]["targets"] = json!([{"kind": ["proc-macro"]}]);
        assert_eq!(names(&near(&metadata.to_string())), ["ctx"]);
        let mut metadata = chain(&["ctx", "one", "two"]);
        metadata["resolve"]["nodes"][0]["deps"][0]["dep_kinds"] = json!([{"kind": "build"}]);
        assert_eq!(names(&near(&metadata.to_string())), ["ctx"]);
    }

    #[test]
    fn other_packages_and_what_is_no_metadata_stay_as_they_are() {
        for said in ["not JSON", &chain(&["std", "core", "deep", "deeper"]).to_string()] {
            assert_eq!(near(said), said);
        }
    }
}
