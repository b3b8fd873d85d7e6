//! This crate as a clock.
//!
//! | what | one repetition |
//! |---|---|
//! | `fixed` | a compiled step on one batch |
//! | `epoch` | `train_epoch` |
//! | `epochs` | `train_epoch` and `eval_model` |
//! | `eval` | `eval_model` |

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Instant;

use mnist_notebook_support::linen::matmul_precision;
use mnist_notebook_support::prelude::*;

use crate::clock::{Answer, Clock, Failure};

/// Runs a number of repetitions.
type Repeat = Box<dyn FnMut(usize) -> Result<()>>;

/// Trains and evaluates the tutorial's network on the datasets' device.
pub struct Ours {
    precision: Precision,
    train_ds: Dataset,
    test_ds: Dataset,
    prepared: HashMap<(String, usize), Repeat>,
}

impl Ours {
    pub fn new(precision: Precision, train_ds: Dataset, test_ds: Dataset) -> Self {
        Self { precision, train_ds, test_ds, prepared: HashMap::new() }
    }
}

impl Clock for Ours {
    fn time(&mut self, what: &str, batch: usize, count: usize) -> Answer {
        let _restored = InPrecision::set(self.precision);
        let repeat = match self.prepared.entry((what.to_owned(), batch)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                entry.insert(prepare(what, batch, &self.train_ds, &self.test_ds)?)
            }
        };
        let start = Instant::now();
        repeat(count)?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / count as f64)
    }
}

/// Sets the precision of products until it is dropped.
struct InPrecision {
    before: Precision,
}

impl InPrecision {
    fn set(precision: Precision) -> Self {
        let before = matmul_precision();
        set_matmul_precision(precision);
        Self { before }
    }
}

impl Drop for InPrecision {
    fn drop(&mut self) {
        set_matmul_precision(self.before);
    }
}

/// The tutorial's optimizer with new parameters.
pub fn optimizer(device: &Device) -> Result<Optimizer> {
    create_optimizer(&get_initial_params(&Cnn, Key::new(0), device)?, 0.1, 0.9)
}

fn prepare(
    what: &str,
    batch: usize,
    train_ds: &Dataset,
    test_ds: &Dataset,
) -> std::result::Result<Repeat, Failure> {
    let mut optimizer = optimizer(train_ds.image().device())?;
    let (train_ds, test_ds) = (train_ds.clone(), test_ds.clone());
    match what {
        "fixed" => {
            let (mut jit, batch) = (Jit::new(), train_ds.slice(0, batch)?);
            Ok(Box::new(move |count| {
                let mut step = || jit.call(|| train_step(&Cnn, &mut optimizer, &batch));
                let metrics = (0..count).map(|_| step()).collect::<Result<Vec<_>>>()?;
                // Waits for the device to finish all steps.
                BatchMetrics::get_all(&metrics).map(drop)
            }))
        }
        "epoch" | "epochs" => {
            let is_evaluated = what == "epochs";
            let mut epochs = 1..;
            Ok(Box::new(move |count| {
                epochs.by_ref().take(count).try_for_each(|epoch| {
                    let rng = Key::new(epoch as i64);
                    train_epoch(&Cnn, &mut optimizer, &train_ds, batch, epoch, rng)?;
                    if is_evaluated {
                        eval_model(&Cnn, optimizer.target(), &test_ds)?;
                    }
                    Ok(())
                })
            }))
        }
        "eval" => Ok(Box::new(move |count| {
            (0..count).try_for_each(|_| {
                eval_model(&Cnn, optimizer.target(), &test_ds).map(drop)
            })
        })),
        _ => Err(Failure::Request(format!("unknown request `{what}`"))),
    }
}
