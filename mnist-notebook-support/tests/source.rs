//! `source` finds and shows the project's code.

use mnist_notebook_support::{source, source_with_docs};

#[test]
fn source_shows_the_code_with_its_documentation() {
    let step = source_with_docs("train_step").unwrap().to_string();
    assert!(
        step.starts_with("// mnist-notebook-support/src/train_step.rs\n\n///"),
        "{step}"
    );
    assert!(step.contains("/// # Errors\n"), "{step}");
    let short = source("train_step").unwrap().to_string();
    assert!(short.contains("\n/// ") && !short.contains("# Errors"), "{short}");
    assert!(step.contains("pub fn train_step") && step.ends_with('}'), "{step}");
    let cnn = source("Cnn").unwrap().markdown();
    assert!(
        cnn.starts_with("```rust\n// mnist-notebook-support/src/model.rs\n"),
        "{cnn}"
    );
    assert!(
        cnn.contains("pub struct Cnn") && cnn.contains("impl Module for Cnn"),
        "{cnn}"
    );
    assert!(cnn.ends_with("\n```"), "{cnn}");
}

#[test]
fn the_error_for_an_unknown_item_suggests_similar_names() {
    let message = source("trainstep").unwrap_err().to_string();
    assert!(
        message.contains("no item `trainstep`") && message.contains("train_step"),
        "{message}"
    );
}

#[test]
fn items_of_every_crate_are_shown_with_their_file() {
    for (name, file) in [
        ("create_optimizer", "mnist-notebook-support/src/optimizer.rs"),
        ("Optimizer", "crates/linen/src/optimizer.rs"),
        ("rotate", "crates/images/src/transform.rs"),
        ("gelu", "crates/linen/src/layers.rs"),
        ("Conv", "crates/linen/src/conv.rs"),
        ("add", "crates/linen/src/branches.rs"),
        ("concatenate", "crates/linen/src/branches.rs"),
        ("saliency", "crates/inspect/src/lib.rs"),
        ("save_onnx", "crates/take-away/src/onnx/mod.rs"),
        ("line_chart", "crates/notebook-display/src/line_chart.rs"),
        ("permutation", "crates/jax-random/src/draws.rs"),
        ("Program", "crates/cpu-kernels/src/program.rs"),
    ] {
        let code = source(name).unwrap().to_string();
        assert!(code.starts_with(&format!("// {file}\n")), "{name}: {code}");
    }
}
