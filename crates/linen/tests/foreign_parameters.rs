//! Parameters and images that do not belong together, or come from other programs: files of Flax
//! load, and every message says what to do.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use linen::random::uniform;
use linen::{
    Error, Jit, Key, Module, Params, Result, Scope, Variables, flatten, log_softmax, max_pool,
    no_grad, relu,
};

const CPU: &Device = &Device::Cpu;

struct Cnn;

impl Module for Cnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = max_pool(&relu(&nn.conv(4, (3, 3), x)?)?, (2, 2))?;
        let x = relu(&nn.conv(5, (5, 5), &x)?)?;
        log_softmax(&nn.dense(10, &flatten(&x)?)?)
    }
}

/// A network of one layer.
struct OneLayer(fn(&mut Scope, &Tensor) -> Result<Tensor>);

impl Module for OneLayer {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (self.0)(nn, x)
    }
}

/// [B, height, width, 1].
fn images() -> Tensor {
    uniform(Key::new(1), (2, 8, 8, 1), 0.0, 1.0, CPU).unwrap()
}

fn params() -> Params {
    Cnn.init(Key::new(0), &images()).unwrap()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

/// Writes tensors as other programs do, without a checksum.
fn write(path: &Path, tensors: impl IntoIterator<Item = (String, Tensor)>) {
    candle_core::safetensors::save(&tensors.into_iter().collect::<HashMap<_, _>>(), path).unwrap();
}

/// The parameters under other names.
fn renamed(params: &Params, rename: impl Fn(&str) -> String) -> Vec<(String, Tensor)> {
    params.iter().map(|(path, var)| (rename(path), var.as_detached_tensor())).collect()
}

#[test]
fn flax_names_load_in_every_spelling() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let params = params();
    let spellings: [fn(&str) -> String; 4] = [
        |path| path.to_owned(),
        |path| format!("params/{path}"),
        |path| path.replace('/', "."),
        |path| format!("params.{}", path.replace('/', ".")),
    ];
    for spelling in spellings {
        write(file.path(), renamed(&params, spelling));
        let loaded = Params::load(file.path(), CPU).unwrap();
        assert!(loaded.paths().eq(params.paths()), "{loaded:?}");
        let output = |params| values(&Cnn.apply(params, &images()).unwrap());
        assert_eq!(output(&loaded), output(&params));
    }
    let with_dots = |prefix: &str| renamed(&params, |path| format!("{prefix}.{path}"));
    let all = with_dots("params").into_iter().chain(with_dots("batch_stats"));
    write(file.path(), all.map(|(name, tensor)| (name.replace('/', "."), tensor)));
    let loaded = Variables::load(file.path(), CPU).unwrap();
    assert!(loaded.params.paths().eq(params.paths()), "{loaded:?}");
    assert!(loaded.batch_stats.paths().eq(params.paths()), "{loaded:?}");
}

#[test]
fn names_with_dots_survive_a_file() {
    for names in [&["log.scale"][..], &["log.scale", "Dense_0/my.kernel"]] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let params = names.iter().map(|name| (name.to_string(), images())).collect::<Vec<_>>();
        let params = Params::try_from(params).unwrap();
        params.save(file.path()).unwrap();
        assert!(Params::load(file.path(), CPU).unwrap().paths().eq(params.paths()));
    }
}

#[test]
fn a_file_of_several_collections_names_the_function_that_reads_it() {
    let file = tempfile::NamedTempFile::new().unwrap();
    Variables { params: params(), batch_stats: params() }.save(file.path()).unwrap();
    let error = Params::load(file.path(), CPU).unwrap_err();
    assert!(matches!(error, Error::Load { .. }), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("also \"batch_stats/Conv_0/bias\": `Variables::load`"), "{message}");

    let params = params();
    let (target, momentum) = (renamed(&params, |path| format!("params/{path}")), "momentum/bias");
    write(file.path(), target.into_iter().chain([(momentum.to_owned(), images())]));
    let message = Params::load(file.path(), CPU).unwrap_err().to_string();
    assert!(message.contains("\"momentum/bias\""), "{message}");
    assert!(message.ends_with("`Checkpoints::load` a checkpoint"), "{message}");

    params.save(file.path()).unwrap();
    let message = Variables::load(file.path(), CPU).unwrap_err().to_string();
    assert!(message.contains("are read by `Params::load`"), "{message}");
}

/// The message when the network runs with changed parameters.
fn message_with(change: impl Fn(&str, &Tensor) -> candle_core::Result<Tensor>) -> String {
    let params = params();
    let changed = params.iter().map(|(path, var)| (path.to_owned(), change(path, var).unwrap()));
    let changed = Params::try_from(changed.collect::<Vec<_>>()).unwrap();
    Cnn.apply(&changed, &images()).unwrap_err().to_string()
}

#[test]
fn names_with_dots_are_recognized() {
    for prefix in ["", "params.", "model.params."] {
        let params = params();
        let dotted = |path: &str| format!("{prefix}{}", path.replace('/', "."));
        let renamed = params.iter().map(|(path, var)| (dotted(path), var.as_tensor().clone()));
        let renamed = Params::try_from(renamed.collect::<Vec<_>>()).unwrap();
        let message = Cnn.apply(&renamed, &images()).unwrap_err().to_string();
        assert!(message.contains(&format!("rename it to \"{}\"", "Conv_0/kernel")), "{message}");
        assert!(message.contains(&format!("{prefix}Conv_0.kernel")), "{message}");
    }
}

#[test]
fn names_of_pytorch_are_recognized() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let rename = |path: &str| path.replace('_', "").to_lowercase().replace("kernel", "weight");
    write(file.path(), renamed(&params(), |path| rename(path).replace('/', ".")));
    let loaded = Params::load(file.path(), CPU).unwrap();
    let message = Cnn.apply(&loaded, &images()).unwrap_err().to_string();
    for words in [
        "no parameter \"Conv_0/kernel\" among [conv0/bias, conv0/weight, ",
        "these look like PyTorch's names, and Flax's are expected, such as \"Conv_0/kernel\"; ",
        "[height, width, in, out] instead of [out, in, height, width]",
    ] {
        assert!(message.contains(words), "{words:?} is not in: {message}");
    }
    // Names of this crate's own, of another network.
    let other = OneLayer(|nn, x| nn.dense(2, flatten(x))).init(Key::new(0), &images()).unwrap();
    let message = Cnn.apply(&other, &images()).unwrap_err().to_string();
    assert!(message.contains("the parameters come from another network"), "{message}");
}

#[test]
fn kernels_in_pytorch_s_layout_are_recognized() {
    let message = message_with(|path, var| match path {
        "Conv_1/kernel" => var.permute((3, 2, 0, 1)),
        _ => Ok(var.clone()),
    });
    let shapes = "\"Conv_1/kernel\" has shape [5, 4, 5, 5] where the network needs [5, 5, 4, 5]";
    assert!(message.contains(shapes), "{message}");
    assert!(message.ends_with("use `permute((2, 3, 1, 0))`"), "{message}");
    let message = message_with(|path, var| match path {
        "Dense_0/kernel" => var.t(),
        _ => Ok(var.clone()),
    });
    let shapes = "\"Dense_0/kernel\" has shape [10, 80] where the network needs [80, 10]";
    assert!(message.contains(shapes), "{message}");
    assert!(message.contains("PyTorch's layout, [out, in]: transpose it"), "{message}");
    assert!(message.ends_with("to [height, width, channels]"), "{message}");

    // The advice brings back the original.
    let kernel = params().get("Conv_1/kernel").unwrap().as_detached_tensor();
    let there = kernel.permute((3, 2, 0, 1)).unwrap();
    assert_eq!(values(&there.permute((2, 3, 1, 0)).unwrap()), values(&kernel));
}

#[test]
fn images_with_channels_first_are_recognized() {
    let channels_first = images().permute((0, 3, 1, 2)).unwrap();
    let message = Cnn.apply(&params(), &channels_first).unwrap_err().to_string();
    let reason = "the input has 8 channels where the parameter has 1: images are [B, height, width";
    assert!(message.contains(reason), "{message}");

    // Of another size: nothing is wrong with the channels.
    let larger = Tensor::zeros((1, 10, 10, 1), DType::F32, CPU).unwrap();
    let message = Cnn.apply(&params(), &larger).unwrap_err().to_string();
    let advice = "needs [125, 10]: call `init` with a sample of the shape you train on";
    assert!(message.ends_with(advice), "{message}");
}

#[test]
fn another_element_type_names_to_dtype() {
    for (dtype, name) in [(DType::BF16, "bf16"), (DType::F16, "f16"), (DType::F64, "f64")] {
        let params = params().to_dtype(dtype).unwrap();
        let error = Cnn.apply(&params, &images()).unwrap_err();
        let message = error.to_string();
        let words = "convert the parameters with `to_dtype(DType::F32)?`";
        let expected = format!(
            "Conv_0: the input has elements of type f32, the parameters of type {name}: {words}"
        );
        assert_eq!(message, expected);
        let compiled = Jit::new().call(|| no_grad(|| Cnn.apply(&params, &images())));
        assert_eq!(compiled.unwrap_err().to_string(), message);
    }
    for (dtype, name) in [(DType::F64, "f64"), (DType::BF16, "bf16"), (DType::U8, "u8")] {
        let other = images().to_dtype(dtype).unwrap();
        let words = "the parameters of type f32: convert the input with `to_dtype(DType::F32)?`";
        let expected = |layer| format!("{layer}: the input has elements of type {name}, {words}");
        let conv = Cnn.init(Key::new(0), &other).unwrap_err();
        assert_eq!(conv.to_string(), expected("Conv_0"));
        let conv = Cnn.apply(&params(), &other).unwrap_err();
        assert_eq!(conv.to_string(), expected("Conv_0"));
        let dense =
            OneLayer(|nn, x| nn.dense(2, flatten(x))).init(Key::new(0), &other).unwrap_err();
        assert_eq!(dense.to_string(), expected("Dense_0"));
        let norm = OneLayer(|nn, x| nn.batch_norm(x)).init(Key::new(0), &other).unwrap_err();
        assert_eq!(norm.to_string(), expected("BatchNorm_0"));
    }
    let both = params().to_dtype(DType::F64).unwrap();
    let error = Cnn.apply(&both, &images().to_dtype(DType::BF16).unwrap()).unwrap_err();
    assert!(error.to_string().ends_with("convert the input with `to_dtype(DType::F64)?`"));
    let error = log_softmax(Tensor::zeros(3, DType::U8, CPU).unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("expected elements of type f32 or another float type, found u8"));
}
