//! The command line `cargo run --example train`: its training, its files and its errors.

use std::path::Path;
use std::process::{Command, Stdio};

use mnist_notebook_support::prelude::*;
use serde_json::{Value, json};
use tests::newest_checkpoint;

/// The program, with few images so that an epoch is short.
fn train(arguments: &[&str]) -> Command {
    let mut train = Command::new(env!("CARGO_BIN_EXE_train"));
    train.args(["--train-images", "320"]).args(arguments);
    train
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Its output; it must succeed.
fn output(arguments: &[&str]) -> String {
    let output = train(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.is_empty(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Its error message; it must fail.
fn error_message(arguments: &[&str]) -> String {
    let output = train(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// Its message for invalid arguments; the exit code must be 2.
fn usage_error(arguments: &[&str]) -> String {
    let output = train(arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn killed_and_resumed_training_equals_uninterrupted_training() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, resumed) = (folder.path().join("whole"), folder.path().join("resumed"));
    output(&["--epochs", "4", "--checkpoints", path(&whole)]);

    let first_epoch = resumed.join("epoch-0001.safetensors");
    let arguments = ["--epochs", "4", "--checkpoints", path(&resumed)];
    let mut child = train(&arguments).stdout(Stdio::null()).spawn().unwrap();
    while !first_epoch.exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended without a checkpoint");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();

    output(&[&arguments[..], &["--resume"]].concat());
    assert_eq!(newest_checkpoint(&resumed), newest_checkpoint(&whole));
    assert!(newest_checkpoint(&whole).is_ok());
}

#[test]
fn training_goes_on_from_a_checkpoint_with_a_smaller_learning_rate() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = ["--checkpoints", path(folder.path())];
    output(&[&checkpoints[..], &["--epochs", "1"]].concat());
    let message = error_message(
        &[&checkpoints[..], &["--epochs", "2", "--resume", "--learning-rate", "1e30"]].concat(),
    );
    let advice = "resume from the last good checkpoint, ";
    assert!(message.contains(advice) && message.contains("epoch-0001"), "{message}");
    output(&[&checkpoints[..], &["--epochs", "2", "--resume", "--learning-rate", "0.01"]].concat());
    let run = Checkpoints::new(folder.path(), 3).unwrap().resume(&Device::Cpu).unwrap().unwrap();
    assert_eq!((run.epoch, run.state.optimizer.learning_rate()), (2, 0.01));
}

#[test]
#[cfg(target_os = "linux")]
fn lines_that_cannot_be_written_do_not_stop_training() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().join("shown");
    output(&["--epochs", "2", "--checkpoints", path(&shown)]);
    let full: Stdio = std::fs::File::create("/dev/full").unwrap().into();
    let (_, closed) = std::io::pipe().unwrap();
    for (name, stdout) in [("full", full), ("closed", closed.into())] {
        let unseen = folder.path().join(name);
        let mut training = train(&["--epochs", "2", "--checkpoints", path(&unseen)]);
        let output = training.stdout(stdout).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && error.is_empty(), "{name}: {error}");
        assert_eq!(newest_checkpoint(&unseen), newest_checkpoint(&shown), "{name}");
    }
}

#[test]
fn the_history_includes_the_epochs_before_a_resume() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    let checkpoints = file("checkpoints");
    let checkpoints = ["--checkpoints", path(&checkpoints)];
    let (csv, json) = (file("history.csv"), file("history.json"));
    output(&[&checkpoints[..], &["--epochs", "1", "--history", path(&csv)]].concat());
    let printed = output(
        &[&checkpoints[..], &["--resume", "--epochs", "2", "--history", path(&json)]].concat(),
    );
    output(&[&checkpoints[..], &["--resume", "--epochs", "2", "--history", path(&csv)]].concat());

    let epochs: Vec<Value> = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let table = std::fs::read_to_string(csv).unwrap();
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
    let names = ["epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy"];
    assert_eq!(rows[0], names);
    assert_eq!((epochs.len(), rows.len()), (2, 3));
    for (epoch, row) in epochs.iter().zip(&rows[1..]) {
        let (train, test) = (&epoch["train"], &epoch["test"]);
        let values = [&train["loss"], &train["accuracy"], &test["loss"], &test["accuracy"]];
        assert_eq!(row[0], epoch["epoch"].to_string());
        for (text, value) in row[1..].iter().zip(values) {
            assert_eq!(text.parse::<f32>().unwrap(), value.as_f64().unwrap() as f32);
        }
    }
    assert_eq!((&epochs[0]["epoch"], &epochs[1]["epoch"]), (&json!(1), &json!(2)));
    let loss = epochs[1]["train"]["loss"].as_f64().unwrap();
    assert!(printed.contains(&format!("Training - epoch: 2, loss: {loss:.4}")), "{printed}");
}

#[test]
fn existing_checkpoints_are_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--epochs", "1", "--checkpoints", path(folder.path())];
    output(&arguments);
    let before = newest_checkpoint(folder.path());
    let message = error_message(&[&arguments[..], &["--seed", "1"]].concat());
    let expected = format!(
        "error: {} holds checkpoints: add --resume to continue from the newest, or name another \
         folder\n",
        folder.path().display()
    );
    assert_eq!(message, expected);
    assert_eq!(newest_checkpoint(folder.path()), before);
}

#[test]
fn errors_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let empty = path(folder.path());
    for (arguments, expected) in [
        (
            vec!["--checkpoints", empty, "--resume"],
            format!(
                "error: {empty} holds no checkpoints: leave out --resume to start from scratch\n"
            ),
        ),
        (
            vec!["--batch-size", "321"],
            "error: batch size 321 does not fit a dataset of 320 examples: choose one from 1 to \
             320\n"
                .into(),
        ),
        (
            vec!["--learning-rate", "-1"],
            "error: learning_rate = -1 is out of range: it must be a finite number, 0 or more\n"
                .into(),
        ),
        (
            vec!["--momentum", "1"],
            "error: beta = 1 is out of range: it must be at least 0 and below 1\n".into(),
        ),
        (
            vec!["--history", "no/such/folder/history.csv"],
            "error: cannot write no/such/folder/history.csv: No such file or directory \
             (os error 2)\n"
                .into(),
        ),
    ] {
        assert_eq!(error_message(&arguments), expected, "{arguments:?}");
    }
    let message = error_message(&["--data", empty]);
    assert!(message.contains("is missing") && message.lines().count() == 1, "{message}");
}

#[test]
fn invalid_arguments_are_named() {
    for (arguments, expected) in [
        (&["--epochs", "many"][..], "invalid value 'many' for '--epochs <EPOCHS>'"),
        (&["--history", "history.txt"], "its name must end in .csv or .json"),
        (&["--resume"], "--checkpoints <DIR>"),
        (
            &["--checkpoints", "folder", "--resume", "--seed", "1"],
            "the argument '--resume' cannot be used with '--seed <SEED>'",
        ),
    ] {
        let message = usage_error(arguments);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
}
