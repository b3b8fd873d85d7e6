//! What is measured for the page, and its tables.

use std::time::Instant;

use crate::table::Table;
use crate::turns::{Clocks, Row, Who, measure};

/// The batch sizes.
pub const BATCHES: [usize; 4] = [32, 256, 2048, 16384];
/// Milliseconds of a turn.
const TURN: f64 = 100.0;

const OURS: Row = Row::epoch("this crate, whole epoch, f32", Who::Ours, "epoch");
const OURS_TF32: Row =
    Row::epoch("this crate, whole epoch, TF32", Who::OursInTf32, "epoch");
const SCAN: Row =
    Row::epoch("JAX, whole epoch (`scan`), f32", Who::Jax, "scan_highest");
const SCAN_DEFAULT: Row =
    Row::epoch("JAX, whole epoch (`scan`), default (TF32)", Who::Jax, "scan_default");
/// The peer that takes longest to prepare comes last.
const STEPS: [Row; 13] = [
    Row::step("this crate, one batch, f32", Who::Ours, "fixed"),
    OURS,
    Row::step("this crate, one batch, TF32", Who::OursInTf32, "fixed"),
    OURS_TF32,
    Row::step("JAX, one batch, f32", Who::Jax, "fixed_highest"),
    SCAN,
    Row::step("JAX, one batch, default (TF32)", Who::Jax, "fixed_default"),
    SCAN_DEFAULT,
    Row::step("JAX, the tutorial's loop, default (TF32)", Who::Jax, "train_step"),
    Row::step("PyTorch, CUDA graph, f32", Who::TorchGraph, "graph_f32"),
    Row::step("PyTorch, CUDA graph, TF32", Who::TorchGraph, "graph_tf32"),
    Row::step("PyTorch, `torch.compile`, f32", Who::TorchCompile, "compiled_f32"),
    Row::step("PyTorch, `torch.compile`, TF32", Who::TorchCompile, "compiled_tf32"),
];
/// The names and clocks of the second table.
const RUNS: [(&str, Who, &str, &str); 4] = [
    ("this crate, f32", Who::Ours, "eval", "epochs"),
    ("this crate, TF32", Who::OursInTf32, "eval", "epochs"),
    ("JAX, f32", Who::Jax, "eval_highest", "epochs_highest"),
    ("JAX, default (TF32)", Who::Jax, "eval_default", "epochs_default"),
];

/// The milliseconds of a step, for each batch size.
pub fn steps(clocks: &mut Clocks, examples: usize, until: Instant) -> Table {
    let mut table = Table::new(BATCHES.map(|batch| batch.to_string()));
    let mut columns = Vec::new();
    // The peers start with the first batch size, which takes time.
    let weights = [2, 1, 1, 1];
    for (index, batch) in BATCHES.into_iter().enumerate() {
        let steps = examples / batch;
        let remaining = until.saturating_duration_since(Instant::now());
        let share = remaining * weights[index] / weights[index..].iter().sum::<u32>();
        // JAX's loop takes an epoch at most.
        let count = |ms: f64| ((TURN / ms) as usize).clamp(1, steps.max(1));
        let times = measure(clocks, &STEPS, batch, count, Instant::now() + share);
        let per_step = |(row, ms): (&Row, Option<f64>)| {
            ms.filter(|_| steps > 0 || !row.is_epoch)
                .map(|ms| if row.is_epoch { ms / steps as f64 } else { ms })
        };
        columns.push(STEPS.iter().zip(times).map(per_step).collect::<Vec<_>>());
    }
    for (index, row) in STEPS.iter().enumerate() {
        table.add(row.name, columns.iter().map(|column| column[index]));
    }
    table.add_ratio("f32 against JAX's `scan` in f32", OURS.name, SCAN.name);
    table.add_ratio(
        "TF32 against JAX's `scan` by default",
        OURS_TF32.name,
        SCAN_DEFAULT.name,
    );
    table
}

/// The times of an evaluation and of ten epochs, each with its evaluation.
pub fn runs(clocks: &mut Clocks, until: Instant) -> Table {
    let columns = ["evaluation of 10,000 images, ms", "ten epochs with evaluation, s"];
    let mut table = Table::new(columns.map(str::to_owned));
    let rows = RUNS.map(|(name, who, what, _)| Row::step(name, who, what));
    let count = |ms: f64| ((TURN / ms) as usize).max(1);
    let evaluations = measure(clocks, &rows, BATCHES[0], count, until);
    let rows = RUNS.map(|(name, who, _, what)| Row::epoch(name, who, what));
    let epochs = measure(clocks, &rows, BATCHES[0], |_| 10, until);
    for ((name, ..), (evaluation, epoch)) in
        RUNS.iter().zip(evaluations.into_iter().zip(epochs))
    {
        table.add(name, [evaluation, epoch.map(|ms| ms * 10.0 / 1e3)]);
    }
    table
}
