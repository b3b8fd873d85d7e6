//! Compiles a small crate in a template.

use std::fs;

use toml::Table;
use warm_evcxr::files::write;
use warm_evcxr::pool::{Build, CARGO_CONFIG, Pool};
use warm_evcxr::template;

#[test]
fn turning_a_feature_on_or_off_compiles_the_template_again() {
    let folder = tempfile::tempdir().unwrap();
    let package = fs::canonicalize(folder.path()).unwrap().join("mine");
    let manifest = "[package]\nname = \"mine\"\nedition = \"2024\"\n\
                    [lib]\ncrate-type = [\"rlib\", \"dylib\"]\n[features]\ngpu = [\"dep:driver\"]\n\
                    [dependencies]\ndriver = { path = \"../driver\", optional = true }\n";
    let driver = package.with_file_name("driver");
    for (package, manifest) in
        [(&package, manifest), (&driver, "[package]\nname = \"driver\"\nedition = \"2024\"\n")]
    {
        write(&package.join("Cargo.toml"), manifest).unwrap();
        write(&package.join("src/lib.rs"), "").unwrap();
    }
    let pool = Pool::new(folder.path().join("pool"));
    pool.furnish(CARGO_CONFIG).unwrap();
    let dependencies: Table = format!("mine = {{ path = {package:?} }}").parse().unwrap();
    let has_compiled = |features: &[&str]| {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let build = Build { features, ..Build::default() };
        template::warm(&pool, &dependencies, &build, &|_| {}).unwrap()
    };
    assert!(has_compiled(&[]));
    assert!(!has_compiled(&["other/gpu"]), "not a feature of a dependency");
    assert!(has_compiled(&["mine/gpu"]), "turned on");
    let lock = fs::read_to_string(pool.template().join("Cargo.lock")).unwrap();
    assert!(lock.contains("driver"), "each cell would look for it: {lock}");
    assert!(!has_compiled(&["mine/gpu"]));
    assert!(has_compiled(&[]), "turned off");
}
