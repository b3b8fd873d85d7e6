//! The annotated MNIST tutorial of Flax, in Rust: the same steps under the same names.
//!
//! | step of the tutorial | items | file |
//! |---|---|---|
//! | build the model | [`Cnn`], [`linen::Module`], [`linen::tabulate`] | `model.rs` |
//! | loss | [`onehot`], [`cross_entropy_loss`] | `loss.rs` |
//! | optimizer | [`create_optimizer`], [`Optimizer`] | `optimizer.rs` |
//! | initial parameters, keys | [`get_initial_params`], [`random::Key`] | `initializer.rs` |
//! | metrics | [`compute_metrics`], [`Metrics`] | `metrics.rs` |
//! | dataset | [`get_datasets`], [`Dataset`] | `dataset/` |
//! | training step, evaluation step | [`train_step`], [`eval_step`] | `train_step.rs` |
//! | `@jax.jit` | [`macro@jit`], [`Jit`], [`disable_jit`] | of the crates `jit-macro` and `linen` |
//! | training and evaluation | [`train_epoch`], [`eval_model`], [`predict`] | `train_epoch.rs` |
//!
//! Beyond the tutorial:
//!
//! | topic | items |
//! |---|---|
//! | saving and resuming | [`Checkpoints`], [`TrainingRun`] |
//! | another dataset | [`get_fashion_datasets`] |
//! | looking inside a network | [`inspect`], [`linen::capture_intermediates`] |
//! | augmentation | [`images`], [`augment`] |
//! | batch norm and dropout | [`linen::Scope`], [`linen::Variables`], [`TrainState`] |
//! | other optimizers | [`Momentum`], Nesterov's too, [`Adam`], [`AdamW`] |
//! | branches, strides, other layers | [`linen::add`], [`linen::concatenate`], [`linen::Conv`], … |
//! | learning-rate schedules | [`WarmupCosine`] |
//! | export, your own pictures | [`save_onnx`], [`read_image`], [`prepare_digit`] |
//!
//! The whole tutorial is a few lines:
//!
//! ```
//! use mnist_notebook_support::prelude::*;
//!
//! let model = Cnn;
//! let (rng, init_rng) = Key::new(0).split();
//! let params = get_initial_params(&model, init_rng, &Device::Cpu)?;
//! let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
//!
//! let (train_ds, test_ds) = get_datasets(&Device::Cpu)?;
//! let train_ds = train_ds.slice(0, 640)?; // the tutorial takes all 60,000
//! let (rng, input_rng) = rng.split();
//! train_epoch(&model, &mut optimizer, &train_ds, 32, 1, input_rng)?;
//!
//! let test_ds = test_ds.slice(0, 500)?;
//! let metrics = eval_model(&model, optimizer.target(), &test_ds)?;
//! assert!(metrics.loss < 2.0 && metrics.accuracy > 0.3);
//! # Ok::<(), mnist_notebook_support::Error>(())
//! ```

mod batch_log;
mod checkpoint;
mod csv;
mod dataset;
mod device;
mod error;
mod history;
mod initializer;
mod loss;
mod metrics;
mod model;
#[doc(hidden)]
pub mod on_gpu;
mod optimizer;
mod predictions;
mod train_epoch;
mod train_step;
mod trained;

// `#[jit]` names this crate, in it, too.
extern crate self as mnist_notebook_support;

// Notebook cells use candle through this crate, so there is only one version of it.
pub use candle_core;
pub use candle_nn;
// The layers below the tutorial.
pub use images;
pub use inspect;
pub use linen;
pub use linen::random;
pub use take_away;

pub use batch_log::BatchLog;
pub use checkpoint::{Checkpoints, TrainingRun};
pub use csv::csv_column;
pub use dataset::{
    Batch, Bytes, Dataset, FASHION_CLASSES, get_datasets, get_datasets_from,
    get_fashion_datasets, load_mnist,
};
pub use device::best_device;
pub use error::{CheckpointError, DataError, Diverged};
pub use history::{EpochMetrics, History};
pub use images::{augment, prepare_digit, read_image};
pub use initializer::get_initial_params;
pub use jit_macro::jit;
pub use linen::{
    Adam, AdamW, BatchMetrics, Error, Gradients, Jit, Metrics, Momentum, Optimizer,
    Result, Train, TrainState, WarmupCosine, disable_jit, value_and_grad,
};
pub use loss::{cross_entropy_loss, onehot};
pub use metrics::compute_metrics;
pub use model::Cnn;
pub use optimizer::create_optimizer;
pub use predictions::{mistakes, prediction_grid};
pub use take_away::save_onnx;
pub use train_epoch::{eval_model, predict, train_epoch, train_epoch_with};
pub use train_step::{eval_step, train_step};
pub use trained::trained_params;

/// Figures, tables and panels for notebooks, from `notebook-display`, `images` and `take-away`.
pub mod notebook {
    pub use images::{TensorView, image_grid, pictures, show, signed_pictures};
    // Not its `Error` and `Result`: a notebook's are the prelude's.
    pub use notebook_display::{
        Figure, LineChart, Number, Picture, Progress, Table, bar_chart, display,
        grouped, heat_map, line_chart, picture_grid, picture_rows, scatter_chart,
        short, side_by_side,
    };
    pub use take_away::{DrawPanel, draw_panel};

    pub use crate::{csv_column, prediction_grid};
}

/// Everything the tutorial uses, for a single `use` at the top of a notebook.
pub mod prelude {
    pub use candle_core::{D, DType, Device, Tensor};
    pub use linen::random::{Key, permutation};
    pub use linen::{
        Conv, Evaluate, Module, Padding, Params, Precision, Scope, Variables, add,
        argmax, avg_pool, check, concatenate, flatten, gelu, global_avg_pool,
        log_softmax, max_pool, no_grad, relu, set_matmul_precision, tabulate,
    };

    pub use crate::{
        Adam, AdamW, Batch, BatchLog, BatchMetrics, Checkpoints, Cnn, Dataset,
        EpochMetrics, Error, Gradients, History, Jit, Metrics, Momentum, Optimizer,
        Result, Train, TrainState, TrainingRun, WarmupCosine, augment, best_device,
        compute_metrics, create_optimizer, cross_entropy_loss, disable_jit, eval_model,
        eval_step, get_datasets, get_fashion_datasets, get_initial_params, jit,
        load_mnist, mistakes, onehot, predict, prepare_digit, read_image, save_onnx,
        train_epoch, train_epoch_with, train_step, trained_params, value_and_grad,
    };
}

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
