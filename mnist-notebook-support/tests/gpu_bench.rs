//! The measurement on a GPU, as far as it works without one: peers, turns, tables.

#[path = "../benches/gpu/clock.rs"]
mod clock;
#[path = "../benches/gpu/ours.rs"]
mod ours;
#[path = "../benches/gpu/page.rs"]
mod page;
#[path = "../benches/gpu/table.rs"]
mod table;
#[path = "../benches/gpu/turns.rs"]
mod turns;

use std::process::Command;
use std::time::{Duration, Instant};

use mnist_notebook_support::linen::matmul_precision;
use mnist_notebook_support::prelude::*;

use clock::{Answer, Clock, Failure, Peer};
use ours::Ours;
use table::Table;
use turns::{Clocks, Row, Who, measure};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A peer that runs a shell script.
fn peer(script: &str, deadline: Instant) -> Peer {
    Peer::start(Command::new("sh").args(["-c", script]), deadline).unwrap()
}

#[test]
fn a_table_shows_what_was_measured_and_the_ratios() {
    let mut table = Table::new([32, 16384].map(|batch| batch.to_string()));
    table.add("ours", [Some(0.2), Some(51.26)]);
    table.add("JAX", [Some(0.128), None]);
    table.add("not there", [None, None]);
    table.add_ratio("against JAX", "ours", "JAX");
    table.add_ratio("against nobody", "ours", "not there");
    assert_eq!(
        table.to_string(),
        "| | 32 | 16384 |\n\
         |---|---|---|\n\
         | ours | 0.200 | 51.3 |\n\
         | JAX | 0.128 |  |\n\
         | against JAX | 0.64 × |  |\n"
    );
}

#[test]
fn a_peer_answers_with_a_time_or_a_reason() {
    let mut peer =
        peer("read a; echo log; echo '= 2.5'; read a; echo '! no GPU'", soon());
    assert_eq!(peer.time("step", 32, 1).unwrap(), 2.5);
    let failure = peer.time("step", 32, 1).unwrap_err();
    assert!(
        matches!(&failure, Failure::Request(reason) if reason == "no GPU"),
        "{failure:?}"
    );
    let failure = peer.time("step", 32, 1).unwrap_err();
    assert!(matches!(failure, Failure::Gone(_)), "{failure:?}");
}

#[test]
fn a_peer_that_does_not_answer_is_stopped_in_time() {
    let mut peer = peer("sleep 5; echo '= 2.5'; read a", Instant::now());
    let failure = peer.time("step", 32, 1).unwrap_err();
    assert!(matches!(failure, Failure::Gone(_)), "{failure:?}");
}

/// Answers with the number of repetitions, but after `limit` answers not at all.
struct Counting {
    limit: usize,
    requests: usize,
}

impl Clock for Counting {
    fn time(&mut self, _: &str, _: usize, count: usize) -> Answer {
        self.requests += 1;
        if self.requests > self.limit {
            return Err(Failure::Gone("tired".to_owned()));
        }
        Ok(count as f64)
    }
}

fn clocks(limits: [(Who, usize); 2]) -> Clocks {
    let clock = |limit| Box::new(Counting { limit, requests: 0 }) as Box<dyn Clock>;
    limits.map(|(who, limit)| (who, clock(limit))).into()
}

const ROWS: [Row; 3] = [
    Row::step("ours", Who::Ours, "fixed"),
    Row::step("JAX", Who::Jax, "fixed"),
    Row::step("PyTorch", Who::TorchGraph, "graph"),
];

#[test]
fn a_peer_that_is_missing_or_gone_leaves_the_others_alone() {
    let mut clocks = clocks([(Who::Ours, 1000), (Who::Jax, 4)]);
    let times = measure(&mut clocks, &ROWS, 32, |_| 7, soon());
    assert_eq!(times, [Some(7.0), None, None]);
    assert!(!clocks.contains_key(&Who::Jax));
}

#[test]
fn when_the_time_is_over_only_this_crate_is_measured() {
    let mut clocks = clocks([(Who::Ours, 1000), (Who::Jax, 1000)]);
    let times = measure(&mut clocks, &ROWS, 32, |_| 7, Instant::now());
    assert_eq!(times, [Some(7.0), None, None]);
    assert!(clocks.contains_key(&Who::Jax));
}

/// Answers as if each step on 65,536 images took the same time, whatever the batch size.
struct Steady;

impl Clock for Steady {
    fn time(&mut self, what: &str, batch: usize, _: usize) -> Answer {
        match what {
            "fixed" => Ok(0.25),
            "epoch" => Ok(0.5 * (65536 / batch) as f64),
            "scan_highest" => Ok(0.125 * (65536 / batch) as f64),
            "eval" | "eval_default" => Ok(2.0),
            "epochs" => Ok(450.0),
            _ => Err(Failure::Request("not asked".to_owned())),
        }
    }
}

#[test]
fn the_page_has_milliseconds_of_a_step_and_seconds_of_ten_epochs() {
    let mut clocks = Clocks::new();
    clocks.insert(Who::Ours, Box::new(Steady));
    clocks.insert(Who::Jax, Box::new(Steady));
    assert_eq!(
        page::steps(&mut clocks, 65536, soon()).to_string(),
        "| | 32 | 256 | 2048 | 16384 |\n\
         |---|---|---|---|---|\n\
         | this crate, one batch, f32 | 0.250 | 0.250 | 0.250 | 0.250 |\n\
         | this crate, whole epoch, f32 | 0.500 | 0.500 | 0.500 | 0.500 |\n\
         | JAX, whole epoch (`scan`), f32 | 0.125 | 0.125 | 0.125 | 0.125 |\n\
         | f32 against JAX's `scan` in f32 | 0.25 × | 0.25 × | 0.25 × | 0.25 × |\n"
    );
    assert_eq!(
        page::runs(&mut clocks, soon()).to_string(),
        "| | evaluation of 10,000 images, ms | ten epochs with evaluation, s |\n\
         |---|---|---|\n\
         | this crate, f32 | 2.00 | 4.50 |\n\
         | JAX, default (TF32) | 2.00 |  |\n"
    );
}

#[test]
fn a_dataset_smaller_than_a_batch_is_no_epoch() {
    let mut clocks = Clocks::new();
    clocks.insert(Who::Ours, Box::new(Steady));
    assert_eq!(
        page::steps(&mut clocks, 2048, soon()).to_string(),
        "| | 32 | 256 | 2048 | 16384 |\n\
         |---|---|---|---|---|\n\
         | this crate, one batch, f32 | 0.250 | 0.250 | 0.250 | 0.250 |\n\
         | this crate, whole epoch, f32 | 16.0 | 16.0 | 16.0 |  |\n"
    );
}

#[test]
fn this_crate_answers_each_request() {
    let (train_ds, test_ds) = get_datasets(&Device::Cpu).unwrap();
    let (train_ds, test_ds) =
        (train_ds.slice(0, 64).unwrap(), test_ds.slice(0, 100).unwrap());
    let mut ours = Ours::new(Precision::Tf32, train_ds, test_ds);
    for what in ["fixed", "epoch", "epochs", "eval"] {
        let ms = ours.time(what, 32, 2).unwrap();
        assert!(ms > 0.0, "{what}: {ms}");
        // What is measured next is not in its precision.
        assert_eq!(matmul_precision(), Precision::F32);
    }
    let failure = ours.time("unknown", 32, 2).unwrap_err();
    assert!(matches!(failure, Failure::Request(_)), "{failure:?}");
    assert_eq!(matmul_precision(), Precision::F32);
}
