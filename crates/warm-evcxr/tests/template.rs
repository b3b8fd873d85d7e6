//! Compiles a small crate in a template.

use std::fs;
use std::path::Path;
use std::process::Command;

use toml::Table;
use warm_evcxr::files::write;
use warm_evcxr::pool::{Build, CARGO_CONFIG, Pool};
use warm_evcxr::{template, toolchain};

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

/// rust-analyzer asks Cargo about the standard library at each start of a kernel.
#[test]
fn the_standard_library_s_crates_are_there_without_a_network() {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap().stdout;
    let sysroot = String::from_utf8(sysroot).unwrap();
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/Cargo.toml");
    let mut ask = Command::new("cargo");
    ask.args(["metadata", "--format-version=1", "--locked", "--offline", "--manifest-path"]);
    ask.arg(&library)
        .args(["--filter-platform", &toolchain::host(Path::new("rustc")).unwrap()])
        .env("RUSTC_BOOTSTRAP", "1");
    if !library.exists() {
        eprintln!("rust-src is not installed");
    } else if std::env::var_os("WITH_OWN_CARGO_HOME").is_some() {
        warm_empty_template();
        let output = ask.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    } else {
        // Once more in a process with a Cargo that has not downloaded anything.
        let home = tempfile::tempdir().unwrap();
        assert!(!ask.env("CARGO_HOME", home.path()).output().unwrap().status.success());
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "the_standard_library_s_crates_are_there_without_a_network"]);
        again.env("CARGO_HOME", home.path()).env("WITH_OWN_CARGO_HOME", "1");
        let output = again.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
}

fn warm_empty_template() {
    let folder = tempfile::tempdir().unwrap();
    let pool = Pool::new(folder.path().join("pool"));
    pool.furnish(CARGO_CONFIG).unwrap();
    template::warm(&pool, &Table::new(), &Build::default(), &|_| {}).unwrap();
}
