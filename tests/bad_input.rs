//! Bad input: every kind has its own error that says what to do, and nothing panics.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use mnist_notebook_support::images::{add_noise, rotate, shift};
use mnist_notebook_support::inspect::{
    CalibrationBin, calibration_curve, confusion_matrix, expected_calibration_error, pca, saliency,
};
use mnist_notebook_support::linen::{self, Input, check, files, trace};
use mnist_notebook_support::linen::{
    Evaluate, capture_intermediates,
    initializers::{lecun_normal, ones, zeros},
};
use mnist_notebook_support::notebook::Number;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::{bernoulli, bits, normal, truncated_normal, uniform};
use mnist_notebook_support::take_away::SummaryWriter;
use mnist_notebook_support::{DataError, Diverged, get_datasets_from, notebook};
use tests::{CRATES, root, rust_files};

const CPU: &Device = &Device::Cpu;

/// A network that trains quickly.
struct Small;

impl Module for Small {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(2, (3, 3), x)?)?, (2, 2))?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

/// A network without parameters.
struct Fixed;

impl Module for Fixed {
    fn call(&self, _nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        log_softmax(&flatten(x)?)
    }
}

/// Batch norm and dropout on any input.
struct Norm;

impl Module for Norm {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.batch_norm(x)?;
        nn.dropout(0.5, &x)
    }
}

/// Layer norm and convolutions with strides and without padding, on images.
struct Other;

impl Module for Other {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.layer_norm(x)?;
        let strides = Conv { strides: (3, 2), ..Conv::new(2, (3, 2)) };
        let x = gelu(&nn.conv_with(&strides, &x)?)?;
        let x = nn.conv_with(&Conv { padding: Padding::Valid, ..Conv::new(2, (1, 2)) }, &x)?;
        global_avg_pool(&concatenate(&[&x, &add(&x, &x)?])?)
    }
}

fn images(len: usize) -> Tensor {
    uniform(Key::new(1), (len, 8, 8, 1), 0.0, 1.0, CPU).unwrap()
}

fn labels(len: usize) -> Tensor {
    Tensor::from_iter((0..len as u32).map(|label| label % 10), CPU).unwrap()
}

fn dataset(len: usize) -> Dataset {
    Dataset::new(images(len), labels(len)).unwrap()
}

fn params() -> Params {
    Small.init(Key::new(0), &images(1)).unwrap()
}

fn optimizer(learning_rate: f64) -> Optimizer {
    create_optimizer(&params(), learning_rate, 0.9).unwrap()
}

/// Of [`Norm`].
fn norm_state(x: &Tensor) -> Result<TrainState> {
    TrainState::new(&Norm.init_variables(Key::new(0), x)?, 0.1, Adam::default(), Key::new(1))
}

fn train_on(dataset: &Dataset, batch_size: usize) -> Result<Metrics> {
    train_epoch(&Small, &mut optimizer(0.1), dataset, batch_size, 1, Key::new(2))
}

/// All parameters and moments.
fn values(run: &TrainingRun) -> Vec<f32> {
    let optimizer = &run.state.optimizer;
    let params = std::iter::once(optimizer.target()).chain(optimizer.moments().values());
    let vars = params.flat_map(Params::vars);
    vars.flat_map(|var| var.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect()
}

fn f32s(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, CPU).unwrap()
}

/// The error itself or, if it wraps another crate's error, that one.
fn found<E: std::error::Error + 'static>(error: &Error) -> Option<&E> {
    (error as &dyn std::any::Any).downcast_ref().or_else(|| error.downcast_ref())
}

/// Asserts for each row that the call returns this variant with this text in its message.
macro_rules! refuse {
    ($($case:literal: $call:expr => $variant:pat, $message:literal;)*) => {{
        let mut wrong = Vec::new();
        $(
            match catch_unwind(AssertUnwindSafe(|| $call.map(drop))) {
                Err(_) => wrong.push(format!("{}: panics", $case)),
                Ok(Ok(())) => wrong.push(format!("{}: is accepted", $case)),
                Ok(Err(error)) => {
                    let message = error.to_string();
                    if !matches!(found(&error), Some($variant)) || !message.contains($message) {
                        wrong.push(format!("{}: {error:?}: {message}", $case));
                    }
                }
            }
        )*
        assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    }};
}

#[test]
fn bad_hyperparameters_are_refused() {
    let (nan, infinite) = (f64::NAN, f64::INFINITY);
    let rate = |value| create_optimizer(&params(), value, 0.9);
    let beta = |value| create_optimizer(&params(), 0.1, value);
    let three = dataset(3);
    refuse! {
        "learning rate NaN": rate(nan) => Error::Hyperparameter { name: "learning_rate", .. },
            "learning_rate = NaN is out of range: it must be a finite number, 0 or more";
        "learning rate infinite": rate(infinite) =>
            Error::Hyperparameter { name: "learning_rate", .. }, "learning_rate = inf";
        "learning rate negative": rate(-0.1) =>
            Error::Hyperparameter { name: "learning_rate", .. }, "learning_rate = -0.1";
        "beta NaN": beta(nan) => Error::Hyperparameter { name: "beta", .. },
            "beta = NaN is out of range: it must be at least 0 and below 1";
        "beta infinite": beta(infinite) => Error::Hyperparameter { name: "beta", .. }, "beta = inf";
        "beta negative": beta(-0.1) => Error::Hyperparameter { name: "beta", .. }, "beta = -0.1";
        "beta 1": beta(1.0) => Error::Hyperparameter { name: "beta", .. }, "below 1";
        "batch size 0": train_on(&three, 0) => DataError::BatchSize { batch_size: 0, examples: 3 },
            "batch size 0 does not fit a dataset of 3 examples: choose one from 1 to 3";
        "batch size larger than the data": train_on(&three, 4) =>
            DataError::BatchSize { batch_size: 4, .. }, "choose one from 1 to 3";
        "batch size larger than any memory": train_on(&three, usize::MAX) =>
            DataError::BatchSize { .. }, "choose one from 1 to 3";
        "zero checkpoints to keep": Checkpoints::new(std::env::temp_dir(), 0) =>
            Error::Hyperparameter { name: "keep", .. }, "at least one checkpoint must be kept";
        "random numbers from NaN": uniform(Key::new(0), 3, f32::NAN, 1.0, CPU) =>
            Error::Hyperparameter { name: "minval", .. }, "it must be finite";
        "a probability above 1": bernoulli(Key::new(0), 1.1, 3, CPU) =>
            Error::Hyperparameter { name: "p", .. }, "a probability is from 0 to 1";
        "a peak that is not a learning rate": WarmupCosine::new(nan, 1, 2) =>
            Error::Hyperparameter { name: "peak", .. }, "a finite number, 0 or more";
        "a warm-up as long as the schedule": WarmupCosine::new(0.1, 2, 2) =>
            Error::Hyperparameter { name: "warmup_steps", .. }, "less than `total_steps`";
        "a negative shift": augment(Key::new(0), &images(1), -1.0, 0.0) =>
            Error::Hyperparameter { name: "max_shift", .. }, "a finite number, 0 or more";
        "a shift that is infinite as an f32": augment(Key::new(0), &images(1), 1e300, 0.0) =>
            Error::Hyperparameter { name: "max_shift", .. }, "a finite number, 0 or more";
        "an infinite angle": augment(Key::new(0), &images(1), 0.0, infinite) =>
            Error::Hyperparameter { name: "max_degrees", .. }, "a finite number, 0 or more";
        "random numbers, reversed bounds": truncated_normal(Key::new(0), 1.0, -1.0, 3, CPU) =>
            Error::Hyperparameter { name: "lower", .. }, "below `upper`";
    }
}

#[test]
fn bad_datasets_are_refused() {
    let mut wrong_label = labels(4).to_vec1::<u32>().unwrap();
    wrong_label[2] = 10;
    let wrong_label = Tensor::from_vec(wrong_label, 4, CPU).unwrap();
    let empty = Dataset::new(f32s(&[0, 8, 8, 1]), labels(4).narrow(0, 0, 0).unwrap()).unwrap();
    let dark = |dtype| Tensor::zeros((4, 8, 8, 1), dtype, CPU).unwrap();
    refuse! {
        "integers into a log-softmax": log_softmax(dark(DType::U8)) => Error::DType { .. },
            "log_softmax input: expected elements of type f32 or another float type, found u8";
        "a label out of range": train_on(&Dataset::new(images(4), wrong_label.clone()).unwrap(), 2)
            => Error::Label { label: 10, index: 2, num_classes: 10 },
            "label 10 at position 2 is not below the number of classes, 10";
        "a label out of range in a test set":
            eval_model(&Small, &params(), &Dataset::new(images(4), wrong_label).unwrap()) =>
            Error::Label { label: 10, .. }, "label 10 at position 2";
        "images of rank 3": Dataset::new(f32s(&[4, 8, 8]), labels(4)) => Error::Shape { .. },
            "dataset images: expected shape [N, height, width, channels], found [4, 8, 8]";
        "labels of rank 2": Dataset::new(images(4), labels(4).reshape((4, 1)).unwrap()) =>
            Error::Shape { .. }, "dataset labels: expected shape [N], found [4, 1]";
        "images of bytes": Dataset::new(dark(DType::U8), labels(4)) => Error::DType { .. },
            "dataset images: expected elements of type f32 or another float type, found u8";
        "i64 labels": Dataset::new(images(4), labels(4).to_dtype(DType::I64).unwrap()) =>
            Error::DType { .. }, "dataset labels: expected elements of type u32, found i64";
        "fewer labels than images": Dataset::new(images(4), labels(3)) =>
            DataError::Lengths { images: 4, labels: 3 }, "4 images but 3 labels";
        "an empty training set": train_on(&empty, 1) => Error::Empty(_), "train on";
        "an empty test set": eval_model(&Small, &params(), &empty) => Error::Empty(_),
            "there are no examples: there is nothing to evaluate on";
        "nothing to predict": predict(&Small, &params(), &empty) => Error::Empty(_),
            "there are no examples: there is nothing to predict";
        "an empty batch": train_step(&Small, &mut optimizer(0.1), &empty) =>
            Error::Empty(_), "there are no examples";
        "a batch beyond the end": dataset(4).batch(&[4]) => Error::Tensor(_), "4";
        "a slice beyond the end": dataset(4).slice(3, 2) => Error::Tensor(_), "4";
        "a slice that overflows": dataset(4).slice(usize::MAX, 2) => Error::Tensor(_), "";
        "color images for a grayscale network": train_on(
            &Dataset::new(f32s(&[4, 8, 8, 3]), labels(4)).unwrap(), 2) =>
            Error::ParamShape { .. }, "parameter \"Conv_0/kernel\" has shape [3, 3, 1, 2]";
        "images of another size": train_on(
            &Dataset::new(f32s(&[4, 10, 10, 1]), labels(4)).unwrap(), 2) =>
            Error::ParamShape { .. }, "call `init` with a sample of the shape you train on";
        "f64 images for an f32 network": train_on(
            &Dataset::new(dark(DType::F64), labels(4)).unwrap(), 2) => Error::LayerDType { .. },
            "Conv_0: the input has elements of type f64, the parameters of type f32";
        "a folder without data": get_datasets_from("/no/such/folder", CPU) =>
            DataError::Missing { .. }, "MNIST_DATA_DIR";
    }
}

#[test]
fn bad_networks_are_refused() {
    struct Broken<F>(F);
    impl<F: Fn(&mut Scope, &Tensor) -> Result<Tensor>> Module for Broken<F> {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            self.0(nn, x)
        }
    }
    fn init(call: impl Fn(&mut Scope, &Tensor) -> Result<Tensor>) -> Result<Params> {
        Broken(call).init(Key::new(0), &images(1))
    }
    const VALID: Padding = Padding::Valid;
    let strided = |strides, padding| Conv { strides, padding, ..Conv::new(1, (3, 3)) };
    let none = Fixed.init(Key::new(0), &images(1)).unwrap();
    let norm = init(|nn, x| nn.batch_norm(x)).unwrap();
    let no_statistics = Variables { params: norm.copy().unwrap(), ..Default::default() };
    refuse! {
        "no parameters": create_optimizer(&none, 0.1, 0.9) => Error::NoParams,
            "the network has no parameters: there is nothing to train";
        "the parameters of another network": Small.apply(&none, &images(1)) =>
            Error::MissingParam { .. }, "no parameter \"Conv_0/kernel\"";
        "no features": init(|nn, x| nn.conv(0, (3, 3), x)) =>
            Error::Hyperparameter { name: "features", .. }, "it must be at least 1";
        "an empty kernel": init(|nn, x| nn.conv(1, (3, 0), x)) =>
            Error::Hyperparameter { name: "kernel width", .. }, "it must be at least 1";
        "a dense layer on images": init(|nn, x| nn.dense(10, x)) => Error::Shape { .. },
            "call `flatten` before the first dense layer";
        "a convolution on rows": init(|nn, x| nn.conv(1, (3, 3), &flatten(x)?)) =>
            Error::Shape { .. }, "conv input: expected shape [B, height, width, channels]";
        "a stride of 0": init(|nn, x| nn.conv_with(&strided((0, 1), Padding::Same), x)) =>
            Error::Hyperparameter { name: "stride down", .. }, "it must be at least 1";
        "a stride of 0 to the right": init(|nn, x| nn.conv_with(&strided((1, 0), VALID), x)) =>
            Error::Hyperparameter { name: "stride to the right", .. }, "it must be at least 1";
        "a kernel larger than the image": init(|nn, x| nn.conv_with(
            &Conv { padding: VALID, ..Conv::new(1, (9, 3)) }, x)) => Error::Shape { .. },
            "conv input: expected shape [B, at least 9, at least 3, C] without padding, found [1, ";
        "strides on rows": init(|nn, x| nn.conv_with(&strided((2, 2), VALID), &flatten(x)?)) =>
            Error::Shape { .. }, "conv input: expected shape [B, height, width, channels]";
        "a global pool of rows": global_avg_pool(f32s(&[2, 3])) => Error::Shape { .. },
            "global_avg_pool input: expected shape [B, at least 1, at least 1, C], found [2, 3]";
        "a global pool without pixels": global_avg_pool(f32s(&[2, 3, 0, 1])) =>
            Error::Shape { .. }, "at least 1, at least 1, C], found [2, 3, 0, 1]";
        "GELU of integers": gelu(labels(2)) => Error::DType { .. },
            "gelu input: expected elements of type f32 or another float type, found u32";
        "layer norm of a scalar": init(|nn, x| nn.layer_norm(&x.sum_all()?)) =>
            Error::Shape { .. }, "layer_norm input: expected shape […, features], at least 1";
        "layer norm of nothing": init(|nn, x| nn.layer_norm(&x.narrow(3, 0, 0)?)) =>
            Error::Shape { .. }, "at least 1 of them, found [1, 8, 8, 0]";
        "layer norm of integers": init(|nn, _| nn.layer_norm(labels(2))) => Error::DType { .. },
            "layer_norm input: expected elements of type f32 or another float type, found u32";
        "a sum of other shapes": add(f32s(&[2, 3]), f32s(&[1, 3])) => Error::Shape { .. },
            "second input of add: expected shape [2, 3], found [1, 3]";
        "a sum of other types": add(f32s(&[2]), labels(2)) => Error::DTypeMismatch { .. },
            "add: one tensor has elements of type f32, another of type u32";
        "nothing to concatenate": concatenate(&[]) =>
            Error::Hyperparameter { name: "number of tensors", .. }, "it must be at least 1";
        "scalars to concatenate": concatenate(&[&f32s(&[]), &f32s(&[])]) => Error::Shape { .. },
            "concatenate input: expected shape […, channels], found []";
        "images of other sizes to concatenate":
            concatenate(&[&f32s(&[2, 3, 4, 1]), &f32s(&[2, 3, 5, 1])]) => Error::Shape { .. },
            "concatenate input: expected shape [2, 3, 4, channels], found [2, 3, 5, 1]";
        "images and rows to concatenate": concatenate(&[&f32s(&[2, 3]), &f32s(&[2, 3, 4])]) =>
            Error::Shape { .. }, "expected shape [2, channels], found [2, 3, 4]";
        "other types to concatenate": concatenate(&[&f32s(&[2]), &labels(2)]) =>
            Error::DTypeMismatch { .. }, "one tensor has elements of type f32, another of type u32";
        "a pool larger than the image": avg_pool(images(1), (9, 1)) => Error::Shape { .. },
            "avg_pool input: expected shape [B, at least 9, at least 1, C]";
        "an empty pool": max_pool(images(1), (0, 1)) => Error::Shape { .. }, "max_pool input";
        "batch norm on a scalar": init(|nn, x| nn.batch_norm(&x.sum_all()?)) =>
            Error::Shape { .. }, "batch_norm input: expected shape [B, …, features]";
        "batch norm on nothing": init(|nn, x| nn.batch_norm(&x.narrow(0, 0, 0)?)) =>
            Error::Shape { .. }, "none of them 0, found [0, 8, 8, 1]";
        "a dropout rate of 1": init(|nn, x| nn.dropout(1.0, x)) =>
            Error::Hyperparameter { name: "rate", .. }, "it must be at least 0 and below 1";
        "batch norm without a mode": Broken(|nn: &mut Scope, x: &Tensor| nn.batch_norm(x))
            .apply(&norm, &images(1)) => Error::Mode { .. }, "BatchNorm_0 works differently";
        "dropout without a mode": Broken(|nn: &mut Scope, x: &Tensor| nn.dropout(0.5, x))
            .apply(&norm, &images(1)) => Error::Mode { .. }, "train a `TrainState` of them";
        "batch norm without statistics": Broken(|nn: &mut Scope, x: &Tensor| nn.batch_norm(x))
            .apply_eval(&no_statistics, &images(1)) =>
            Error::MissingParam { .. }, "no parameter \"BatchNorm_0/mean\"";
        "batch norm trained by an optimizer": train_step(
            &Norm, &mut Optimizer::new(&norm, 0.1, Adam::default()).unwrap(), &dataset(2)) =>
            Error::Mode { .. }, "instead of an `Optimizer`";
        "a step without the updated statistics": norm_state(&images(1)).unwrap()
            .apply_gradient(Gradients::default(), Params::default()) =>
            Error::MissingParam { .. }, "no parameter \"BatchNorm_0/mean\"";
        "a parameter created twice": init(|nn, x| {
            nn.param("bias", zeros, 1, x.device())?;
            nn.param("bias", zeros, 1, x.device())
        }) => Error::DuplicateParam(_), "give the second another name";
        "a loss that is no scalar": value_and_grad(
            |params| Ok((params.get("Dense_0/bias").unwrap().sqr()?, ())), &params()) =>
            Error::Shape { .. }, "a scalar: take the mean";
        "a gradient that leaves out a parameter":
            optimizer(0.1).apply_gradient(Gradients::default()) =>
            Error::NoGradient(_), "Conv_0/bias";
        "a gradient of another shape": optimizer(0.1).apply_gradient(
            params().paths().map(|path| (path.to_owned(), f32s(&[2]))).collect()) =>
            Error::Shape { .. }, "gradient: expected shape [3, 3, 1, 2], that of \"Conv_0/kernel\"";
    }
}

#[test]
fn what_does_not_fit_in_memory_is_refused() {
    struct Wide(usize);
    impl Module for Wide {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            nn.dense(self.0, &flatten(x)?)
        }
    }
    // Broadcast tensors: a huge dataset that takes no memory.
    let many = 1usize << 40;
    let broadcast = |tensor: Tensor, shape: &[usize]| tensor.broadcast_as(shape).unwrap();
    let image = broadcast(images(1), &[many, 8, 8, 1]);
    let label = broadcast(labels(1), &[many]);
    let huge_image = Dataset::new(broadcast(images(1), &[1, 8, 8, many]), labels(1)).unwrap();
    let wide = broadcast(f32s(&[1, 1]), &[1 << 20, 1]);
    let wide_kernel = Params::try_from(vec![
        ("Dense_0/kernel".to_owned(), f32s(&[1, 1 << 20])),
        ("Dense_0/bias".to_owned(), f32s(&[1 << 20])),
    ]);
    let none = labels(0);
    let norm = Norm.init_variables(Key::new(0), &images(1)).unwrap();
    let other = Other.init(Key::new(0), &images(1)).unwrap();
    refuse! {
        "labels": Dataset::new(image.clone(), label) => Error::Memory { .. },
            "a list of labels needs 4398.0 GB of memory, but only ";
        "a batch to compile for": predict_compiled(&broadcast(images(1), &[many, 8, 8, 1])) =>
            Error::Memory { .. }, "is free: make it smaller, or free memory";
        "an image": predict_compiled(&broadcast(f32s(&[1, 1, 1, 1]), &[1, many, many, 1])) =>
            Error::Memory { .. }, "is free: make it smaller, or free memory";
        "a batch of huge images": huge_image.batch(&[0]) => Error::Memory { .. },
            "a batch needs 281475.0 GB of memory";
        "another element type": huge_image.to_dtype(DType::F64) => Error::Memory { .. },
            "a dataset needs";
        "a wide layer": Wide(many).init(Key::new(0), &images(1)) => Error::Memory { .. },
            "drawing random numbers needs";
        "a layer's output": Wide(1 << 20).apply(&wide_kernel.unwrap(), &wide) =>
            Error::Memory { .. }, "the result of a layer needs 4398.0 GB of memory";
        "random numbers": bits(Key::new(0), many, CPU) => Error::Memory { .. },
            "drawing random numbers needs 4398.0 GB of memory";
        "zeros for a parameter": zeros(Key::new(0), &many.into(), CPU) => Error::Memory { .. },
            "a parameter needs";
        "ones for a parameter": ones(Key::new(0), &many.into(), CPU) => Error::Memory { .. },
            "a parameter needs";
        "classes": onehot(&labels(8), u32::MAX as usize) => Error::Memory { .. },
            "a one-hot array needs 137.4 GB of memory";
        "a matrix of classes": confusion_matrix(&none, &none, many) => Error::Memory { .. },
            "a confusion matrix needs";
        "relu of a broadcast tensor": relu(&image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "gelu of a broadcast tensor": gelu(&image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "global_avg_pool of a broadcast tensor": global_avg_pool(&image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "a sum of broadcast tensors": add(&image, &image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "a concatenation of broadcast tensors": concatenate(&[&image, &image]) =>
            Error::Memory { .. }, "the result of a layer needs";
        "other layers of a broadcast tensor": Other.apply(&other, &image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "log_softmax of a broadcast tensor": log_softmax(&image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "avg_pool of a broadcast tensor": avg_pool(&image, (2, 2)) => Error::Memory { .. },
            "a copy of a tensor needs";
        "max_pool of a broadcast tensor": max_pool(&image, (2, 2)) => Error::Memory { .. },
            "a copy of a tensor needs";
        "flatten of a broadcast tensor": flatten(&image) => Error::Memory { .. },
            "a copy of a tensor needs";
        "a convolution of a broadcast tensor": Small.apply(&params(), &image) =>
            Error::Memory { .. },
            "a copy of a tensor needs";
        "batch norm of a broadcast tensor": Norm.apply_eval(&norm, &image) =>
            Error::Memory { .. }, "a copy of a tensor needs";
        "batch norm of a broadcast batch": Norm
            .apply_train(&norm.params, &norm.batch_stats, Key::new(0), &image) =>
            Error::Memory { .. }, "a copy of a tensor needs";
        "shifts of a broadcast tensor": shift(&image, 1.0, 0.0) => Error::Memory { .. },
            "moving images needs";
        "rotations of a broadcast tensor": rotate(&image, 1.0) => Error::Memory { .. },
            "moving images needs";
        "noise on a broadcast tensor": add_noise(Key::new(0), &image, 0.1) =>
            Error::Memory { .. }, "drawing random numbers needs";
        "augmentation of a broadcast tensor": augment(Key::new(0), &image, 1.0, 1.0) =>
            Error::Memory { .. }, "drawing random numbers needs";
    }
}

#[test]
fn a_folder_of_checkpoints_that_is_gone_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1).unwrap();
    dir.close().unwrap();
    let error = checkpoints.resume(CPU).unwrap_err();
    assert!(error.to_string().starts_with("cannot read the checkpoints in /"), "{error}");
}

fn predict_compiled(images: &Tensor) -> Result<Tensor> {
    Jit::new().call(|| linen::no_grad(|| Small.apply(&params(), images)))
}

/// candle's dummy for a GPU in a build without one: every operation fails.
#[cfg(not(feature = "cuda"))]
#[test]
fn a_missing_device_is_an_error() {
    use mnist_notebook_support::CheckpointError;
    let gpu = &Device::Cuda(mnist_notebook_support::candle_core::CudaDevice);
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 1).unwrap();
    checkpoints
        .save(&TrainingRun { epoch: 1, ..TrainingRun::new(optimizer(0.1), Key::new(0), 2) })
        .unwrap();
    let params_file = dir.path().join("params.safetensors");
    params().save(&params_file).unwrap();
    refuse! {
        "initial parameters": get_initial_params(&Cnn, Key::new(0), gpu) =>
            Error::Tensor(_), "cuda";
        "data": get_datasets(gpu) => Error::Tensor(_), "cuda";
        "random numbers": normal(Key::new(0), 3, gpu) => Error::Tensor(_), "cuda";
        "parameters from a file": Params::load(&params_file, gpu) => Error::Load { .. }, "cuda";
        "parameters moved to the device": params().to_device(gpu) => Error::Tensor(_), "cuda";
        "a checkpoint": checkpoints.resume(gpu) => CheckpointError::Damaged { .. }, "cuda";
    }
}

#[test]
fn a_chart_without_epochs_is_refused() {
    let run = TrainingRun::new(optimizer(0.1), Key::new(3), 5);
    let losses = run.history.iter().map(|epoch| epoch.train.loss).collect::<Vec<_>>();
    refuse! {
        "a chart without epochs":
            notebook::line_chart("loss", "epoch", "nats", &[("train", losses)])
                .map_err(Error::from) => Error::Display(notebook_display::Error::Figure(_)), "";
    }
}

#[test]
fn bad_tensors_are_refused_by_the_loss() {
    let two = Tensor::new(&[0u32, 9], CPU).unwrap();
    let shape = |shape: &[usize]| cross_entropy_loss(&f32s(shape), &two);
    refuse! {
        "logits of rank 1": shape(&[2]) => Error::Shape { what: "logits", .. },
            "logits: expected shape [2, number of classes], found [2]";
        "one row too many": shape(&[3, 10]) => Error::Shape { what: "logits", .. }, "found [3, 10]";
        "labels of rank 2": cross_entropy_loss(&f32s(&[2, 10]), &two.reshape((2, 1)).unwrap()) =>
            Error::Shape { what: "labels", .. }, "labels: expected shape [batch size]";
        "too few classes": shape(&[2, 9]) => Error::Label { label: 9, num_classes: 9, .. },
            "label 9 at position 1";
        "labels that are not integers": onehot(&f32s(&[2]), 10) => Error::DType { .. },
            "labels: expected elements of type u32, found f32";
        "zero classes": onehot(&two, 0) => Error::Label { .. }, "number of classes, 0";
        "integer logits":
            cross_entropy_loss(&f32s(&[2, 10]).to_dtype(DType::U32).unwrap(), &two) =>
            Error::DType { .. }, "logits: expected elements of type f32 or another float type";
        "the mean of no metrics": Metrics::mean(&[]) =>
            Error::Empty(_), "nothing to average";
        "metrics of other shapes": compute_metrics(&f32s(&[3, 10]), &two) => Error::Shape { .. },
            "logits";
    }
}

#[test]
fn bad_input_to_inspect_is_refused() {
    let (two, three) = (labels(2), labels(3));
    let sure = Tensor::new(&[[0.75f32, 0.25], [0.75, 0.25]], CPU).unwrap();
    let features = |value: f32| Tensor::full(value, (3, 4), CPU).unwrap();
    refuse! {
        "fewer predictions than labels": confusion_matrix(&three, &two, 10) => Error::Shape { .. },
            "predictions: expected shape [3], one for each label, found [2]";
        "an out-of-range prediction": confusion_matrix(&two, &two, 1) =>
            Error::Label { label: 1, .. }, "label 1 at position 1";
        "labels that are not integers": confusion_matrix(&f32s(&[2]), &two, 10) =>
            Error::DType { .. }, "labels: expected elements of type u32, found f32";
        "no bins": calibration_curve(&sure, &two, 0) =>
            Error::Hyperparameter { name: "num_bins", .. }, "it must be at least 1";
        "log-probabilities": calibration_curve(&sure.log().unwrap(), &two, 10) =>
            Error::Hyperparameter { name: "probability", .. }, "use `exp`";
        "probabilities that are NaN": calibration_curve(&(sure * f64::NAN).unwrap(), &two, 10) =>
            Error::Hyperparameter { name: "probability", .. }, "it must be from 0 to 1";
        "an image without the batch dimension":
            saliency(&Small, &params(), &f32s(&[8, 8, 1]), &two) => Error::Shape { .. },
            "saliency images: expected shape [N, height, width, channels], found [8, 8, 1]";
        "more classes than images": saliency(&Small, &params(), &images(2), &three) =>
            Error::Shape { .. }, "logits: expected shape [3, number of classes], found [2, 10]";
        "images as features": pca(&images(3), 2) => Error::Shape { .. },
            "pca features: expected shape [at least 2, 1 to 4096], found [3, 8, 8, 1]";
        "a single example": pca(&f32s(&[1, 4]), 2) => Error::Shape { .. }, "at least 2";
        "more components than features": pca(&features(1.0), 5) =>
            Error::Hyperparameter { name: "num_components", .. }, "the number of features";
        "features that are infinite": pca(&features(f32::INFINITY), 2) => Error::Tensor(_),
            "pca features must be finite numbers";
    }
}

#[test]
fn a_loss_that_is_not_finite_stops_training_and_names_the_last_good_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 3).unwrap();
    let (good, test_ds) = (dataset(20), dataset(10));

    // Only the test loss shows that the last step diverged.
    let mut run = TrainingRun::new(optimizer(1e300), Key::new(3), 20);
    let before = values(&run);
    let error = checkpoints.train_epoch(&Small, &mut run, &good, &test_ds).unwrap_err();
    assert!(matches!(found(&error), Some(Diverged { epoch: 1, step: 1, .. })), "{error:?}");
    assert!(checkpoints.resume(CPU).unwrap().is_none());
    assert_eq!(values(&run), before);

    let mut run = TrainingRun::new(optimizer(0.1), Key::new(3), 5);
    checkpoints.train_epoch(&Small, &mut run, &good, &test_ds).unwrap();
    checkpoints.train_epoch(&Small, &mut run, &good, &test_ds).unwrap();
    run.state.optimizer.set_learning_rate(1e300).unwrap();
    let error = checkpoints.train_epoch(&Small, &mut run, &good, &test_ds).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("at epoch 3, step "), "{message}");
    assert!(message.contains("resume from the last good checkpoint, "), "{message}");
    assert!(message.contains("epoch-0002.safetensors, with a smaller learning rate"), "{message}");
    assert_eq!((run.epoch, run.history.len()), (2, 2));
    // The failed epoch is not saved.
    assert_eq!(checkpoints.resume(CPU).unwrap().unwrap().epoch, 2);
}

#[test]
fn a_pixel_that_is_not_a_number_is_named_instead_of_the_learning_rate() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpoints::new(dir.path(), 3).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let mut pixels = images(20).flatten_all().unwrap().to_vec1::<f32>().unwrap();
        pixels[777] = bad;
        let images = Tensor::from_vec(pixels, (20, 8, 8, 1), CPU).unwrap();
        let damaged = Dataset::new(images, labels(20)).unwrap();
        for (train_ds, test_ds) in [(&damaged, &dataset(10)), (&dataset(20), &damaged)] {
            let mut run = TrainingRun::new(optimizer(0.1), Key::new(3), 5);
            let error = checkpoints.train_epoch(&Small, &mut run, train_ds, test_ds).unwrap_err();
            let pixel = error.downcast_ref();
            assert!(matches!(pixel, Some(DataError::Pixel { index: 12 })), "{error:?}");
            assert_eq!(run.epoch, 0);
        }
    }
}

#[test]
fn a_key_used_twice_gives_the_same_numbers_twice() {
    let draw = |key| normal(key, 5, CPU).unwrap().to_vec1::<f32>().unwrap();
    let (one, other) = Key::new(0).split();
    assert_eq!(draw(one), draw(one));
    assert_ne!(draw(one), draw(other));
}

/// Odd tensors: of every rank and type, empty, with NaN and infinite values.
fn odd_tensors() -> Vec<Tensor> {
    let shapes: [&[usize]; 14] = [
        &[],
        &[0],
        &[1],
        &[4],
        &[0, 10],
        &[4, 0],
        &[4, 10],
        &[4, 8, 8],
        &[0, 8, 8, 1],
        &[4, 0, 8, 1],
        &[4, 8, 8, 0],
        &[4, 8, 8, 1],
        &[4, 8, 8, 3],
        &[1, 4, 8, 8, 1],
    ];
    let mut tensors = Vec::new();
    for shape in shapes {
        for dtype in [DType::U8, DType::U32, DType::I64, DType::BF16, DType::F32, DType::F64] {
            tensors.push(Tensor::zeros(shape, dtype, CPU).unwrap());
        }
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            tensors.push(Tensor::full(value, shape, CPU).unwrap());
        }
        // Views: transposed, and a part of the storage.
        let tensor = f32s(shape);
        tensors.push(tensor.t().unwrap_or(tensor.clone()));
        if shape.first().is_some_and(|len| *len > 1) {
            tensors.push(tensor.narrow(0, 1, 2).unwrap());
        }
    }
    tensors
}

/// Records whether a call panics; its result does not matter.
fn record<T>(panics: &mut Vec<String>, what: impl FnOnce() -> String, call: impl FnOnce() -> T) {
    if catch_unwind(AssertUnwindSafe(|| drop(call()))).is_err() {
        panics.push(what());
    }
}

#[test]
fn no_function_of_one_tensor_panics() {
    type Call = fn(&Tensor) -> Result<()>;
    let calls: &[(&str, Call)] = &[
        ("relu", |x| relu(x).map(drop)),
        ("argmax", |x| linen::argmax(x).map(drop)),
        ("no_grad", |x| linen::no_grad(|| Small.apply(&params(), x)).map(drop)),
        ("flatten", |x| flatten(x).map(drop)),
        ("log_softmax", |x| log_softmax(x).map(drop)),
        ("avg_pool", |x| avg_pool(x, (2, 3)).map(drop)),
        ("max_pool", |x| max_pool(x, (2, 3)).map(drop)),
        ("avg_pool with an empty window", |x| avg_pool(x, (0, usize::MAX)).map(drop)),
        ("onehot", |x| onehot(x, 10).map(drop)),
        ("onehot of zero classes", |x| onehot(x, 0).map(drop)),
        ("init", |x| Small.init(Key::new(0), x).map(drop)),
        ("init of the tutorial's network", |x| Cnn.init(Key::new(0), x).map(drop)),
        ("apply", |x| Small.apply(&params(), x).map(drop)),
        ("tabulate", |x| tabulate(&Small, x).map(|table| drop(table.to_string()))),
        ("value_and_grad", |x| value_and_grad(|_| Ok((x.clone(), ())), &params()).map(drop)),
        ("Params::try_from", |x| {
            let params = Params::try_from(vec![("x".to_owned(), x.clone())])?;
            create_optimizer(&params, 0.1, 0.9).map(drop)
        }),
        ("apply_gradient", |x| {
            let grad = params().paths().map(|path| (path.to_owned(), x.clone())).collect();
            optimizer(0.1).apply_gradient(grad)
        }),
        ("shift", |x| shift(x, 1.5, -1e300).map(drop)),
        ("rotate", |x| rotate(x, 1e300).map(drop)),
        ("add_noise", |x| add_noise(Key::new(0), x, 0.1).map(drop)),
        ("pca", |x| pca(x, 1).map(drop)),
        ("capture_intermediates", |x| capture_intermediates(&Small, &params(), x).map(drop)),
        ("show", |x| notebook::show(x).map(drop)),
        ("augment", |x| augment(Key::new(0), x, f64::MAX, f64::MAX).map(drop)),
        ("batch norm and dropout", |x| {
            let variables = Norm.init_variables(Key::new(0), x)?;
            Norm.apply_eval(&variables, x)?;
            let Variables { params, batch_stats } = &variables;
            let (y, _) = Norm.apply_train(params, batch_stats, Key::new(0), x)?;
            y.sum_all()?.backward().map(drop).map_err(Error::from)
        }),
        ("gelu", |x| gelu(x).map(drop)),
        ("global_avg_pool", |x| global_avg_pool(x).map(drop)),
        ("concatenate", |x| concatenate(&[x]).map(drop)),
        ("other layers", |x| {
            let params = Other.init(Key::new(0), x)?;
            let y = Other.apply(&params, x)?;
            y.sum_all()?.backward().map(drop).map_err(Error::from)
        }),
        ("other layers of any float type", |x| {
            let params = Other.init(Key::new(0), &images(1))?.to_dtype(x.dtype())?;
            let y = Other.apply(&params, x)?;
            y.sum_all()?.backward().map(drop).map_err(Error::from)
        }),
        ("image_grid", |x| notebook::image_grid("title", x, &["a"]).map(drop)),
        ("prediction_grid", |x| {
            mnist_notebook_support::images::prediction_grid("title", x, &[1, 2], &[2, 2]).map(drop)
        }),
        ("pictures", |x| notebook::pictures(x).map(drop)),
        ("signed_pictures", |x| notebook::signed_pictures(x).map(drop)),
        ("prepare_digit", |x| prepare_digit(x).map(drop)),
        ("Scope::module", |x| {
            struct Outer;
            impl Module for Outer {
                fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
                    nn.module(&Small, x)
                }
            }
            Outer.init(Key::new(0), x).map(drop)
        }),
        ("SummaryWriter::image", |x| {
            let folder = tempfile::tempdir().unwrap();
            let mut writer = SummaryWriter::new(folder.path())?;
            writer.image("tag", x, usize::MAX)?;
            writer.image("tag", &x.squeeze(0)?, 0)
        }),
        ("any parameters", |x| {
            let params = || Params::try_from(vec![("x".to_owned(), x.clone())]).unwrap();
            let all = [params().copy()?, params().zeros_like()?, params().to_device(CPU)?];
            let file = tempfile::NamedTempFile::new().unwrap();
            for params in &all {
                params.save(file.path())?;
                Params::load(file.path(), CPU)?;
                params.to_dtype(DType::F64)?;
            }
            let variables = Variables { params: params(), batch_stats: params() };
            variables.copy()?.save(file.path())?;
            Variables::load(file.path(), CPU)?;
            notebook::draw_panel(&Small, &variables)?;
            save_onnx(&Small, &params(), x.dims(), file.path())
        }),
    ];
    let mut panics = Vec::new();
    for x in odd_tensors() {
        for (name, call) in calls {
            let what = || format!("{name}({:?}, {:?})", x.dtype(), x.layout());
            record(&mut panics, what, || call(&x));
        }
    }
    assert!(panics.is_empty(), "{} panics:\n{}", panics.len(), panics.join("\n"));
}

#[test]
fn no_function_of_two_tensors_panics() {
    type Call = fn(&Tensor, &Tensor) -> Result<()>;
    fn pair(image: &Tensor, label: &Tensor) -> Result<Dataset> {
        Dataset::new(image.clone(), label.clone())
    }
    let calls: &[(&str, Call)] = &[
        ("cross_entropy_loss", |x, y| cross_entropy_loss(x, y).map(drop)),
        ("add", |x, y| add(x, y).map(drop)),
        ("concatenate", |x, y| concatenate(&[x, y]).map(drop)),
        ("compute_metrics", |x, y| compute_metrics(x, y).and_then(|m| m.get()).map(drop)),
        ("BatchMetrics::get_all", |x, y| {
            let metrics = BatchMetrics { loss: x.clone(), accuracy: y.clone() };
            BatchMetrics::get_all(&[metrics.clone(), metrics]).map(drop)
        }),
        ("confusion_matrix", |x, y| confusion_matrix(x, y, 10).map(drop)),
        ("calibration_curve", |x, y| calibration_curve(x, y, 10).map(drop)),
        ("saliency", |x, y| saliency(&Small, &params(), x, y).map(drop)),
        ("Dataset::new", |x, y| Dataset::new(x.clone(), y.clone()).map(drop)),
        ("Dataset::batch", |x, y| pair(x, y)?.batch(&[0, 1]).map(drop)),
        ("Dataset::slice", |x, y| pair(x, y)?.slice(0, 2).map(drop)),
        ("train_step", |x, y| train_step(&Small, &mut optimizer(0.1), &pair(x, y)?).map(drop)),
        ("train_step of batch norm", |x, y| {
            let (mut state, batch) = (norm_state(x)?, pair(x, y)?);
            train_step(&Norm, &mut state, &batch)?;
            eval_step(&Norm, &state, &batch).map(drop)
        }),
        ("Jit", |x, y| {
            let batch = pair(x, y)?;
            let mut jit = Jit::new();
            jit.call(|| eval_step(&Small, &params(), &batch)).map(drop)?;
            jit.call(|| train_step(&Small, &mut optimizer(0.1), &batch)).map(drop)
        }),
        ("eval_step", |x, y| eval_step(&Small, &params(), &pair(x, y)?).map(drop)),
        ("train_epoch", |x, y| train_on(&pair(x, y)?, 2).map(drop)),
        ("eval_model", |x, y| eval_model(&Small, &params(), &pair(x, y)?).map(drop)),
    ];
    // All pairs would take too long.
    let few: Vec<_> = odd_tensors().into_iter().step_by(3).collect();
    let mut panics = Vec::new();
    for x in &few {
        for y in &few {
            for (name, call) in calls {
                let what = || {
                    let (a, b) = (x.layout(), y.layout());
                    format!("{name}({:?} {a:?}, {:?} {b:?})", x.dtype(), y.dtype())
                };
                record(&mut panics, what, || call(x, y));
            }
        }
    }
    let some = panics.iter().take(50).cloned().collect::<Vec<_>>().join("\n");
    assert!(panics.is_empty(), "{} panics:\n{some}", panics.len());
}

#[test]
fn no_other_function_panics() {
    let mut panics = Vec::new();
    let mut check = |name: &str, call: &dyn Fn()| record(&mut panics, || name.to_owned(), call);
    let key = Key::new(i64::MIN);
    let huge: [&[usize]; 3] = [&[usize::MAX, 2], &[usize::MAX], &[1 << 50]];
    for shape in huge {
        check(&format!("bits {shape:?}"), &|| drop(bits(key, shape, CPU)));
        check(&format!("normal {shape:?}"), &|| drop(normal(key, shape, CPU)));
        check(&format!("lecun_normal {shape:?}"), &|| {
            drop(lecun_normal(key, &shape.into(), CPU));
        });
    }
    check("the smallest key", &|| {
        drop((key.split(), key.split_n(0), key.fold_in(u32::MAX)));
        let _ = Key::from_words([u32::MAX; 2]).words();
    });
    check("permutation", &|| drop((permutation(key, 0), permutation(key, 1))));
    check("uniform", &|| drop(uniform(key, 3, f32::MIN, f32::MAX, CPU)));
    check("truncated_normal", &|| {
        drop(truncated_normal(key, f32::NEG_INFINITY, f32::INFINITY, 3, CPU));
        drop(truncated_normal(key, 0.0, f32::from_bits(1), 3, CPU));
    });
    check("Params::load", &|| drop(Params::load("/no/such/file", CPU)));
    check("Params::save", &|| drop(params().save("/no/such/folder/file")));
    check("empty Params", &|| {
        let none = Params::default();
        drop((
            none.copy(),
            none.to_dtype(DType::F64),
            none.elem_count(),
            none.ensure_fresh_ids(),
            format!("{none:?}"),
        ));
        drop((none.vars(), none.device(), none.get(""), none.iter().count(), none.len()));
        drop(save_onnx(&Fixed, &none, &[], "/no/such/folder/file"));
        drop(save_onnx(&Fixed, &none, &[1 << 50, 1 << 50], "/no/such/folder/file"));
        drop(notebook::draw_panel(&Fixed, &none));
        drop(Jit::new().call(|| linen::no_grad(|| Small.apply(&none, &images(1)))));
        drop(eval_model(&Fixed, &none, &dataset(4)));
    });
    check("Variables", &|| {
        drop((Variables::default().copy(), Variables::default().save("/no/such/folder/file")));
        drop(Variables::load("/no/such/file", CPU));
    });
    check("TrainState", &|| {
        drop(TrainState::new(&Variables::default(), 0.1, Momentum::default(), key));
        let mut state = norm_state(&images(1)).unwrap();
        let _ = (state.copy(), state.variables(), state.as_optimizer().is_none());
        drop(state.apply(&Small, &params(), &f32s(&[])));
        drop(state.apply(&Other, state.params(), &images(1)));
        drop(optimizer(0.1).apply(&Norm, &params(), &images(1)));
        drop(
            state.apply_gradient(Gradients::default(), norm_state(&images(1)).unwrap().batch_stats),
        );
        drop(Train::apply_gradient(&mut optimizer(0.1), Gradients::default(), params()));
    });
    check("TrainingRun", &|| {
        drop(TrainingRun::from_bytes(b"", CPU));
        let mut run = TrainingRun::new(optimizer(0.0), key, 0);
        run.epoch = usize::MAX;
        let _ = (run.to_bytes(), run.state.optimizer.learning_rate());
        drop(run.train_epoch(&Small, &dataset(4), &dataset(4)));
        run.batch_size = 2;
        let fails = |state: &mut TrainState, batch: &Batch| eval_step(&Norm, state, batch);
        drop(run.train_epoch_with(&Small, &dataset(4), &dataset(4), fails));
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(folder.path(), 1).unwrap();
        drop(checkpoints.train_epoch_with(&Small, &mut run, &dataset(4), &dataset(4), fails));
        drop(train_epoch_with(&mut run.state, &dataset(4), 0, usize::MAX, key, fails));
    });
    check("WarmupCosine", &|| {
        let schedule = WarmupCosine::new(f64::MAX, 0, usize::MAX).unwrap();
        let _ = (schedule.learning_rate(0), schedule.learning_rate(usize::MAX));
        drop(WarmupCosine::new(f64::MIN_POSITIVE, usize::MAX, 0));
    });
    check("Gradients", &|| {
        let none = Gradients::default();
        let _ = (none.get("x").is_err(), none.iter().map(Iterator::count));
    });
    check("Jit", &|| {
        let jit = Jit::new();
        drop((jit.is_compiled(), jit.to_string()));
    });
    check("best_device", &|| {
        let _ = best_device();
    });
    check("get_fashion_datasets", &|| drop(get_fashion_datasets(CPU)));
    check("files of the notebooks", &|| {
        drop((load_mnist(CPU), notebook::csv_column("/no/such/file", "")));
        drop(trained_params("/dev/null", CPU));
        let file = tempfile::NamedTempFile::new().unwrap();
        let other =
            Params::try_from([("Dense_0/bias", Tensor::zeros(3, DType::F32, CPU).unwrap())]);
        other.unwrap().save(file.path()).unwrap();
        let error = trained_params(file.path(), CPU).unwrap_err().to_string();
        assert!(error.contains("another network"), "{error}");
    });
    check("History", &|| {
        let mut history = History::new();
        drop(history.plot());
        history.push(Metrics { loss: f32::NAN, accuracy: f32::INFINITY }, Metrics::default());
        drop(history.plot());
    });
    check("Metrics", &|| {
        let wrong = Metrics { loss: f32::NAN, accuracy: f32::INFINITY };
        drop(Metrics::mean(&[wrong, wrong]));
        drop(BatchMetrics::get_all(&[]));
    });
    check("read_image", &|| drop((read_image("/no/such/file", CPU), read_image("/", CPU))));
    check("SummaryWriter", &|| {
        drop(SummaryWriter::new("/dev/null/folder"));
        let folder = tempfile::tempdir().unwrap();
        drop(SummaryWriter::new(folder.path()).unwrap().scalar("", f64::NAN, usize::MAX));
    });
    check("expected_calibration_error", &|| {
        let odd = CalibrationBin { confidence: f32::NAN, accuracy: -1.0, count: usize::MAX };
        let _ = (expected_calibration_error(&[]), expected_calibration_error(&[odd, odd]));
    });
    check("Checkpoints::load", &|| {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), usize::MAX).unwrap();
        drop((checkpoints.load("", CPU), checkpoints.load("/", CPU)));
    });
    check("charts", &|| {
        let nothing: [(&str, Vec<f32>); 0] = [];
        let odd = [f32::NAN, f32::MAX, f32::MIN, -0.0, f32::MIN_POSITIVE];
        drop(notebook::line_chart("", "", "", &nothing));
        drop(notebook::line_chart("t", "x", "y", &[("a", odd)]));
        let chart = || notebook::LineChart::new("t", "x", "y");
        drop(chart().log_x().log_y().line("a", odd, odd).mark(f32::NAN, "").draw());
        drop(chart().points_with_errors("", odd, odd, odd).reference("", odd, [0]).draw());
        drop(notebook::bar_chart("", "", "", ["", "a"], [f32::NAN, f32::MAX]));
        drop(notebook::bar_chart("t", "x", "y", ["a", "b"], [u64::MAX, 0]));
        drop(notebook::heat_map("t", "x", "y", ["a", "b"], &[odd]));
        drop(notebook::heat_map("t", "x", "y", ["a"], &[[i64::MIN]]));
        drop(notebook::scatter_chart("t", "x", "y", &[[1.0], [2.0]], &["a"]));
        drop(notebook::scatter_chart("t", "x", "y", &[[f64::MAX, f64::NAN]], &["a"]));
        let _ = (f32::NAN.to_f64(), u64::MAX.to_f64());
    });
    check("Figure", &|| {
        let figure = notebook::bar_chart("t", "x", "y", ["a"], [1]).unwrap();
        let _ = (figure.svg().len(), figure.text().len());
        drop((figure.save("/no/such/folder/a.svg"), figure.save("a.gif"), figure.save("")));
        drop((notebook::side_by_side(&[]), notebook::side_by_side(&vec![figure.clone(); 9])));
    });
    check("pictures", &|| {
        drop((notebook::picture_grid("", &[]), notebook::picture_rows("", &[("", Vec::new())])));
        let signed = notebook::Picture::signed(&[f32::MAX, -f32::MAX], 1, 2).unwrap();
        drop(notebook::picture_rows("", &[("", vec![signed; 24])]));
        drop(notebook::Picture::new(&[0.5], usize::MAX, 2));
        let picture = notebook::Picture::new(&[f32::MAX], 1, 1).unwrap();
        drop(notebook::picture_grid("", &vec![picture.caption("").verdict(true); 145]));
    });
    check("other displays", &|| {
        drop(notebook::Table::new(&["a"], &[vec!["b", "c"]]));
        let table = notebook::Table::new(&["<"], &[vec!["\u{0}"]]).unwrap();
        drop(table.html());
        let panel = get_initial_params(&Cnn, key, CPU).and_then(|p| notebook::draw_panel(&Cnn, &p));
        let panel = panel.unwrap();
        drop((panel.html().len(), panel.save("/no/such/folder/file"), panel.save("")));
    });
    check("Progress", &|| {
        let mut progress = notebook::Progress::new("", 0);
        progress.step(0, || None);
        progress.step(usize::MAX, || None);
        progress.finish();
    });
    assert!(panics.is_empty(), "panics:\n{}", panics.join("\n"));
}

#[test]
fn no_building_block_panics() {
    let mut panics = Vec::new();
    for x in odd_tensors() {
        let what = |name: &str| format!("{name}({:?} {:?})", x.dtype(), x.layout());
        let mut check = |name: &str, call: &dyn Fn()| record(&mut panics, || what(name), call);
        check("checks of labels", &|| {
            drop((check::log_probs(&x, &x), check::logits(&x, &x), check::float("x", &x)));
            drop((check::labels(&x, usize::MAX), check::label_range(&x, 0)));
            check::assume_labels_up_to(0, &x);
        });
        check("graph", &|| {
            drop(linen::graph(&Small, &params(), x.dims()));
            let variables = Variables { params: params(), ..Default::default() };
            let _ = (Other.apply_eval(&variables, &x), variables.batch_stats().is_some());
            drop((Small.evaluate(&params(), &x), linen::jitted(|| disable_jit(|| relu(&x)))));
            let _ = variables.variable("").is_some();
        });
        check("steps on a GPU", &|| {
            drop(linen::gpu_train_step(&Small, &mut optimizer(0.1), &x, &x));
            linen::set_matmul_precision(linen::matmul_precision());
            drop(linen::gpu_train_epoch(&Small, &mut optimizer(0.1), (&x, &x), 0, &[7]));
            drop(linen::gpu_eval_step(&Small, &params(), &x, &x));
        });
        check("Jit::call", &|| {
            drop(predict_compiled(&x));
            let examples = x.dims().first().copied().unwrap_or(0);
            if let Ok(dataset) = Dataset::new(x.clone(), labels(examples)) {
                drop((mistakes(&dataset, &x), dataset.with_image(x.clone())));
                drop(notebook::prediction_grid("title", &dataset, &x, &[0, u32::MAX]));
                drop(dataset.mean_over_batches(|batch| eval_step(&Small, &params(), batch)));
                drop(BatchLog::new(usize::MAX, &dataset, 0));
                drop(BatchLog::new(1, &dataset, 1).and_then(BatchLog::mean));
                drop(Jit::new().call(|| eval_step(&Small, &params(), &dataset)));
                drop(dataset.check_batches("test", usize::MAX));
                drop((dataset.check_labels(0), dataset.image(), dataset.label()));
                drop(predict(&Small, &params(), &dataset));
            }
        });
        check("trace", &|| {
            let (_, ops) = trace::trace(|| relu(&x)).unwrap_or((x.clone(), Vec::new()));
            let _ = (trace::layer_names(&ops), Input::tensor(&x));
            for op in ops {
                let _ = (
                    trace::layer_name(&op.layer),
                    op.layer.try_map(|_| None::<()>),
                    Small.name(),
                    Small.identity(),
                );
            }
        });
    }
    let mut check = |name: &str, call: &dyn Fn()| record(&mut panics, || name.to_owned(), call);
    check("Optimizer", &|| {
        let rules: [linen::Rule; 3] =
            [Momentum::default().into(), Adam::default().into(), AdamW::default().into()];
        for rule in rules {
            drop(Optimizer::new(&Params::default(), f64::NAN, rule));
            let moments = rule.moment_names().iter().map(|&name| (name, Params::default()));
            drop(Optimizer::from_parts(params(), 0.1, rule, usize::MAX, moments.collect()));
            let optimizer = Optimizer::new(&params(), 0.1, rule).unwrap();
            let _ = (optimizer.rule(), optimizer.step_count(), optimizer.copy());
        }
        drop(optimizer(0.1).set_learning_rate(f64::NAN));
    });
    check("files", &|| {
        drop(files::write(Path::new(""), b"x"));
        drop(files::to_bytes(Default::default(), &Default::default()));
        for bytes in [&b""[..], b"{}", &params().to_bytes().unwrap()] {
            if let Ok(file) = files::TensorFile::parse(bytes) {
                let _ = (file.is_intact(), file.tensors("", CPU), file.tensors("Conv", CPU));
            }
        }
    });
    check("errors", &|| {
        let error = Error::other(std::fmt::Error);
        let _ = error.downcast_ref::<std::fmt::Error>();
        drop((check::finite("x", f64::NAN), check::not_negative("x", -0.0)));
        drop(check::positive("x", 0));
        let _ = linen::device_name(CPU.location());
    });
    check("Metrics", &|| drop(Metrics::weighted_mean(std::iter::empty())));
    check("select_device", &|| {
        let _ = linen::select_device(|_| Err(Error::NoParams));
    });
    check("jax_random", &|| {
        let key = Key::new(i64::MAX);
        let _ = (key.bits_at(usize::MAX), jax_random::bernoulli_at(key, 0, f32::NAN));
        assert_eq!(key.bits_from(usize::MAX), [key.bits_at(usize::MAX), key.bits_at(0)]);
        assert_eq!(jax_random::lecun_normal(key, 0, 0).len(), 0); // no inputs, no weights
        let none: [bool; 0] = jax_random::bernoulli_from(key, usize::MAX, f32::NAN);
        assert!(none.is_empty());
    });
    check("notebook_display", &|| {
        let _ = (notebook::grouped("-"), notebook::grouped(""), notebook::short(f64::NAN));
        notebook::display(&[("", "")]);
    });
    assert!(panics.is_empty(), "panics:\n{}", panics.join("\n"));
}

/// The public functions in the crates' sources, methods as `Type::name`.
fn public_functions() -> Vec<String> {
    let files = rust_files(CRATES.map(|name| root().join(name).join("src")));
    // The CUDA module is private, and an attribute runs in the compiler.
    let is_private = |path: &Path| path.iter().any(|part| part == "cuda" || part == "jit-macro");
    let files = files.iter().filter(|path| !path.ends_with("tests.rs") && !is_private(path));
    files.flat_map(|path| functions_of(&std::fs::read_to_string(path).unwrap())).collect()
}

fn functions_of(source: &str) -> Vec<String> {
    let word = |text: &str| {
        let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        text[..end].to_owned()
    };
    let public = ["pub struct ", "pub enum ", "pub trait "];
    let is_public = |name: &str| {
        let start = |line: &str| public.iter().find_map(|start| line.strip_prefix(start).map(word));
        source.lines().any(|line| start(line).as_deref() == Some(name))
    };
    let mut owner: Option<String> = None;
    let mut functions = Vec::new();
    for line in source.lines().take_while(|line| !line.starts_with("#[cfg(test)]")) {
        let is_trait = line.starts_with("pub trait ");
        if line.starts_with("impl") || is_trait {
            let header = line.trim_end_matches(" {").trim_start_matches("pub trait ");
            let header = header.split("> ").last().unwrap().trim_start_matches("impl ");
            owner = Some(if line.contains(" for ") { String::new() } else { word(header) });
        } else if line == "}" {
            owner = None;
        }
        let function = line.trim_start().strip_prefix("pub fn ").or_else(|| {
            let in_trait = owner.as_ref().is_some_and(|owner| {
                source.lines().any(|line| line.starts_with(&format!("pub trait {owner}")))
            });
            line.strip_prefix("    fn ").filter(|_| in_trait)
        });
        match (function.map(word), &owner) {
            (Some(name), None) => functions.push(name),
            (Some(name), Some(owner)) if is_public(owner) => {
                functions.push(format!("{owner}::{name}"));
            }
            _ => {}
        }
    }
    functions
}

#[test]
fn every_public_function_is_called_here() {
    let tests =
        [include_str!("bad_input.rs"), include_str!("../crates/cpu-kernels/tests/bad_input.rs")]
            .concat();
    let calls = |name: &str| {
        let call = format!("{name}(");
        let starts = tests.match_indices(&call).map(|(at, _)| &tests[..at]);
        starts.filter(|text| !text.ends_with(|c: char| c.is_alphanumeric() || c == '_')).count()
    };
    let functions = public_functions();
    assert!(functions.len() > 100, "{functions:?}");
    let mut missing = Vec::new();
    for function in &functions {
        let name = function.rsplit("::").next().unwrap();
        let alike = functions.iter().filter(|other| other.rsplit("::").next() == Some(name));
        // Constructors have one name for all types; other names need a call for each type.
        let called =
            if name == "new" { calls(function) >= 1 } else { calls(name) >= alike.count() };
        // `evcxr_display` only prints a finished figure; the others need a GPU.
        let is_excepted = ["evcxr_display", "gpu_launch_times", "gpu_tile_times"].contains(&name);
        if !called && !is_excepted {
            missing.push(function.as_str());
        }
    }
    assert!(missing.is_empty(), "no test of bad input calls {}", missing.join(", "));
}
