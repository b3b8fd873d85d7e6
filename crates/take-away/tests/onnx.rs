//! Networks that cannot be exported are refused. The package `tests` checks exported networks with
//! other runtimes.

mod common;

use candle_core::{DType, Device, Tensor};
use linen::{Key, Module, Params, Result, Scope, avg_pool, flatten, log_softmax, relu};
use take_away::{draw_panel, save_onnx};

use common::device;

const SHAPE: [usize; 4] = [1, 28, 28, 1];
const FOREIGN: &str = "the network has tensor operations besides this crate's layers";

/// The network of the tutorial.
struct Cnn;

impl Module for Cnn {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(32, (3, 3), x)?)?, (2, 2))?;
        let x = avg_pool(&relu(&nn.conv(64, (3, 3), &x)?)?, (2, 2))?;
        let x = relu(&nn.dense(256, &flatten(&x)?)?)?;
        log_softmax(&nn.dense(10, &x)?)
    }
}

/// Two branches, joined by candle.
struct Branches;

impl Module for Branches {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = flatten(x)?;
        let (one, other) = (nn.dense(10, &x)?, nn.dense(10, &x)?);
        log_softmax(&(one + other)?)
    }
}

/// An operation of candle between layers.
struct Foreign;

impl Module for Foreign {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.dense(10, &(flatten(x)? * 2.0)?)
    }
}

/// A network that is evaluated with variables.
struct Normalized;

impl Module for Normalized {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.batch_norm(x)?;
        nn.dense(10, &flatten(&x)?)
    }
}

/// A layer of another network, evaluated with that one's parameters.
struct Borrowed(Params);

impl Module for Borrowed {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.dense(10, &Five.apply(&self.0, x)?)
    }
}

/// Five outputs instead of ten.
struct Five;

impl Module for Five {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        nn.dense(5, &flatten(x)?)
    }
}

fn params(model: &impl Module) -> Params {
    params_on(&device(), model)
}

fn params_on(device: &Device, model: &impl Module) -> Params {
    let sample = Tensor::ones(&SHAPE, DType::F32, device).unwrap();
    model.init(Key::new(0), &sample).unwrap()
}

#[test]
fn networks_with_other_operations_are_refused() {
    fn check(model: &impl Module) {
        let params = params(model);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("network.onnx");
        let error = save_onnx(model, &params, &SHAPE, &path).unwrap_err().to_string();
        assert!(error.starts_with(FOREIGN), "{error}");
        assert!(!path.exists());
        let error = draw_panel(model, &params).unwrap_err().to_string();
        assert!(error.starts_with(FOREIGN), "{error}");
    }
    check(&Branches);
    check(&Foreign);
    check(&Borrowed(params(&Five)));
}

#[test]
fn an_input_of_the_wrong_shape_gives_the_networks_error() {
    let params = params(&Cnn);
    let save = |shape: &[usize]| save_onnx(&Cnn, &params, shape, "never-written.onnx").unwrap_err();
    assert!(save(&[1, 32, 32, 1]).to_string().contains("\"Dense_0/kernel\" has shape"));
    assert!(save(&[1, 28, 28]).to_string().starts_with("conv input: expected shape"));
    assert!(save(&[]).to_string().starts_with("input of the network: expected shape [B, …]"));
    let sample = Tensor::ones((1, 32, 32, 1), DType::F32, &device()).unwrap();
    let params = Cnn.init(Key::new(0), &sample).unwrap();
    let error = draw_panel(&Cnn, &params).unwrap_err().to_string();
    assert!(error.contains("\"Dense_0/kernel\" has shape"), "{error}");
}

#[test]
fn a_network_with_batch_norm_needs_its_variables() {
    let sample = Tensor::ones(&SHAPE, DType::F32, &device()).unwrap();
    let variables = Normalized.init_variables(Key::new(0), &sample).unwrap();
    let error = draw_panel(&Normalized, &variables.params).unwrap_err().to_string();
    assert!(error.starts_with("BatchNorm_0 works differently in training"), "{error}");
    let var = variables.batch_stats.get("BatchNorm_0/var").unwrap();
    draw_panel(&Normalized, &variables).unwrap();
    var.set(&Tensor::full(f32::INFINITY, var.shape(), &device()).unwrap()).unwrap();
    let error = draw_panel(&Normalized, &variables).unwrap_err().to_string();
    assert_eq!(error, "\"BatchNorm_0/var\" has values that are not finite in F32");
}

#[test]
fn a_file_that_cannot_be_written_is_named() {
    let error = save_onnx(&Cnn, &params(&Cnn), &SHAPE, "no/such/folder/network.onnx").unwrap_err();
    assert!(error.to_string().starts_with("cannot write no/such/folder/network.onnx: "), "{error}");
    let error = draw_panel(&Cnn, &params(&Cnn)).unwrap().save("no/such/folder/panel.html");
    assert!(error.unwrap_err().to_string().starts_with("cannot write no/such/folder/panel.html: "));
}

#[test]
fn parameters_in_double_precision_are_exported_in_single() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let folder = tempfile::tempdir().unwrap();
    let files = [DType::F32, DType::F64].map(|dtype| {
        let path = folder.path().join(dtype.as_str());
        save_onnx(&Cnn, &params(&Cnn).to_dtype(dtype).unwrap(), &SHAPE, &path).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(files[0] == files[1]);
}

/// Without a GPU the CPU is compared with itself.
#[test]
fn every_device_exports_identical_files() {
    let folder = tempfile::tempdir().unwrap();
    let files = [device(), Device::Cpu].map(|device| {
        let params = params_on(&device, &Cnn);
        let path = folder.path().join("network.onnx");
        save_onnx(&Cnn, &params, &SHAPE, &path).unwrap();
        (std::fs::read(path).unwrap(), draw_panel(&Cnn, &params).unwrap().html().to_owned())
    });
    assert!(files[0] == files[1]);
}

#[test]
fn a_panel_needs_ten_outputs() {
    let error = draw_panel(&Five, &params(&Five)).unwrap_err().to_string();
    let wanted = "output of a network for the draw panel: expected shape [B, 10], one column per \
                  digit, found [1, 5]";
    assert_eq!(error, wanted);
}

#[test]
fn parameters_that_are_not_finite_are_refused() {
    for (path, value) in [("Conv_0/bias", f32::NAN), ("Dense_0/kernel", 1e6)] {
        let params = params(&Cnn);
        let var = params.get(path).unwrap();
        var.set(&Tensor::full(value, var.shape(), &device()).unwrap()).unwrap();
        let error = draw_panel(&Cnn, &params).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{path:?} has values that are not finite")), "{error}");
    }
}

#[test]
fn a_panel_is_self_contained() {
    let panel = draw_panel(&Cnn, &params(&Cnn)).unwrap();
    for external in ["http:", "https:", "src=", "href=", "url(", "import ", "fetch("] {
        assert!(!panel.html().contains(external), "{external}");
    }
    assert!(panel.html().len() < 2_500_000, "{panel:?}");
}
