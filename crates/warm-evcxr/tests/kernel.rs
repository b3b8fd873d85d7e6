//! Starts a kernel whose program only prints its environment.
// macOS hides the search path for libraries from shells.
#![cfg(target_os = "linux")]

use std::process::Command;

use warm_evcxr::files::write_program;
use warm_evcxr::pool::{Build, CARGO_CONFIG, Pool, Settings};
use warm_evcxr::toolchain::LIBRARY_PATH;

#[test]
fn kernels_get_the_features_variables_and_libraries_of_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    let evcxr = folder.path().join("evcxr");
    let script =
        format!("#!/bin/sh\necho \"$WARM_EVCXR_FEATURES|$CC|$RUSTUP_TOOLCHAIN|${LIBRARY_PATH}\"\n");
    write_program(&evcxr, &script).unwrap();
    let pool = Pool::new(folder.path().join("pool"));
    pool.furnish(CARGO_CONFIG).unwrap();
    pool.configure(&Settings {
        evcxr,
        build: Build {
            lock: None,
            features: vec!["image/png".into(), "rand/serde".into()],
            environment: vec![("CC".into(), "clang".into())],
        },
        path: Vec::new(),
        libraries: vec!["/one/lib".into(), "/two/lib".into()],
    })
    .unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_warm-evcxr"))
        .arg("kernel")
        .arg(pool.folder())
        .arg("connection.json")
        .env(LIBRARY_PATH, "/user/lib")
        .env("CC", "gcc")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let (start, libraries) = printed.trim().rsplit_once('|').unwrap();
    assert_eq!(start, "image/png rand/serde|clang|"); // rustup sets its variable for this test
    let [own, standard, others @ ..] = &libraries.split(':').collect::<Vec<_>>()[..] else {
        panic!("{libraries}")
    };
    assert!(own.ends_with("debug/deps"), "{own}");
    let names = std::fs::read_dir(standard).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names = names.map(|name| name.to_string_lossy().into_owned());
    assert!(names.any(|name| name.starts_with("libstd-") && name.ends_with(".so")), "{standard}");
    assert_eq!(others, ["/one/lib", "/two/lib", "/user/lib"]);
}
