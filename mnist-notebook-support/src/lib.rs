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
//! | `@jax.jit` | [`Jit`] | of the crate `linen` |
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
//! let (loss, accuracy) = eval_model(&model, optimizer.target(), &test_ds)?;
//! assert!(loss < 2.0 && accuracy > 0.3);
//! # Ok::<(), mnist_notebook_support::Error>(())
//! ```

mod checkpoint;
mod dataset;
mod device;
mod error;
mod initializer;
mod loss;
mod metrics;
mod model;
mod optimizer;
mod source;
mod train_epoch;
mod train_step;

// Notebook cells use candle through this crate, so there is only one version of it.
pub use candle_core;
pub use candle_nn;
// The layers below the tutorial.
pub use images;
pub use inspect;
pub use linen;
pub use linen::random;
pub use take_away;

pub use checkpoint::{Checkpoints, EpochMetrics, TrainingRun};
pub use dataset::{
    Batch, Dataset, FASHION_CLASSES, get_datasets, get_datasets_from, get_fashion_datasets,
};
pub use device::best_device;
pub use error::{CheckpointError, DataError, Diverged};
pub use images::{augment, prepare_digit, read_image};
pub use initializer::get_initial_params;
pub use linen::{
    Adam, AdamW, BatchMetrics, Error, Gradients, Jit, Metrics, Momentum, Optimizer, Result, Train,
    TrainState, WarmupCosine, value_and_grad,
};
pub use loss::{cross_entropy_loss, onehot};
pub use metrics::compute_metrics;
pub use model::Cnn;
pub use optimizer::create_optimizer;
pub use source::{source, source_with_docs};
pub use take_away::save_onnx;
pub use train_epoch::{eval_model, predict, train_epoch, train_epoch_with};
pub use train_step::{eval_step, train_step};

/// Figures, tables and panels for notebooks, from `notebook-display`, `images` and `take-away`.
pub mod notebook {
    pub use images::{
        TensorView, image_grid, pictures, prediction_grid, show, signed_pictures,
    };
    // Not its `Error` and `Result`: a notebook's are the prelude's.
    pub use notebook_display::{
        Figure, LineChart, Number, Picture, Progress, Source, Sources, Table, bar_chart, display,
        grouped, heat_map, line_chart, picture_grid, picture_rows, scatter_chart, short,
        side_by_side,
    };
    pub use take_away::{DrawPanel, draw_panel};

    pub use crate::source::{source, source_with_docs};
}

/// Everything the tutorial uses, for a single `use` at the top of a notebook.
pub mod prelude {
    pub use candle_core::{DType, Device, Tensor};
    pub use linen::random::{Key, permutation};
    pub use linen::{
        Conv, Evaluate, Module, Padding, Params, Precision, Scope, Variables, add, avg_pool,
        concatenate, flatten, gelu, global_avg_pool, log_softmax, max_pool, relu,
        set_matmul_precision, tabulate,
    };

    pub use crate::{
        Adam, AdamW, Batch, BatchMetrics, Checkpoints, Cnn, Dataset, EpochMetrics, Error,
        Gradients, Jit, Metrics, Momentum, Optimizer, Result, Train, TrainState, TrainingRun,
        WarmupCosine, augment, best_device, compute_metrics, create_optimizer, cross_entropy_loss,
        eval_model, eval_step, get_datasets, get_fashion_datasets, get_initial_params, onehot,
        predict, prepare_digit, read_image, save_onnx, train_epoch, train_epoch_with, train_step,
        value_and_grad,
    };
}

/// The files of this crate, for [`source`].
static SOURCES: include_dir::Dir<'_> = include_dir::include_dir!("$CARGO_MANIFEST_DIR/src");

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
