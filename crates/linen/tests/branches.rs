//! Networks with branches, strides, layer norm and GELU: gradients, names, and how they show.

mod common;

use candle_core::{DType, Tensor};
use linen::random::{normal, uniform};
use linen::{
    Conv, Error, Evaluate, Graph, Jit, Key, Module, Padding, Params, Result, Scope, Variables, add,
    capture_intermediates, concatenate, flatten, gelu, global_avg_pool, graph, log_softmax,
    max_pool, no_grad, relu, tabulate, value_and_grad,
};

use common::device;

/// Every layer with several inputs or other strides, with sizes that leave a remainder.
struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let strides = Conv { strides: (2, 2), ..Conv::new(4, (3, 4)) };
        let x = gelu(&nn.conv_with(&strides, x)?)?; //                      [B, 5, 4, 4]
        let x = add(&x, &gelu(&nn.layer_norm(&x)?)?)?;
        let valid = Conv { padding: Padding::Valid, strides: (2, 1), ..Conv::new(3, (2, 2)) };
        let narrow = nn.conv_with(&valid, &x)?; //                          [B, 2, 3, 3]
        let wide = nn.conv_with(&Conv { features: 2, ..valid }, &x)?; //    [B, 2, 3, 2]
        let x = concatenate(&[&narrow, &relu(&wide)?, &narrow])?; //        [B, 2, 3, 8]
        let x = nn.layer_norm(&global_avg_pool(&x)?)?; //                   [B, 8]
        log_softmax(&nn.dense(3, &x)?)
    }
}

fn images() -> Tensor {
    normal(Key::new(2), (4, 10, 7, 3), &device()).unwrap()
}

/// Parameters with other biases and scales than the initial ones, so that errors in them show.
fn params() -> Params {
    let params = Net.init(Key::new(3), &images()).unwrap();
    let noisy = params.iter().enumerate().map(|(i, (path, var))| {
        let noise = normal(Key::new(i as i64), var.shape(), &device()).unwrap();
        (path.to_owned(), (var.as_tensor() + noise * 0.1).unwrap())
    });
    noisy.collect::<Vec<_>>().try_into().unwrap()
}

fn loss_of(params: &Params, dtype: DType) -> Result<(Tensor, ())> {
    let label = Tensor::new(&[0u32, 1, 2, 1], &device())?;
    let logits = Net.apply(params, &images().to_dtype(dtype)?)?;
    Ok((logits.gather(&label.unsqueeze(1)?, 1)?.mean_all()?.neg()?, ()))
}

#[test]
fn gradients_in_f64_equal_finite_differences() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let params = params().to_dtype(DType::F64).unwrap();
    let ((_, ()), gradients) = value_and_grad(|p| loss_of(p, DType::F64), &params).unwrap();
    let loss = || loss_of(&params, DType::F64).unwrap().0.to_scalar::<f64>().unwrap();
    let step = 1e-6;
    for (path, var) in params.iter() {
        let value = var.as_tensor().copy().unwrap();
        // The directional derivative along random signs involves every entry.
        let signs = normal(Key::new(9), var.shape(), &device()).unwrap();
        let signs = signs.sign().unwrap().to_dtype(DType::F64).unwrap();
        let shifted_loss = |shift: f64| {
            var.set(&(&value + (&signs * shift).unwrap()).unwrap()).unwrap();
            loss()
        };
        let numeric = (shifted_loss(step) - shifted_loss(-step)) / (2.0 * step);
        var.set(&value).unwrap();
        let exact = (gradients.get(path).unwrap() * &signs).unwrap().sum_all().unwrap();
        let exact = exact.to_scalar::<f64>().unwrap();
        let error = (numeric - exact).abs();
        assert!(error <= 1e-6 * exact.abs().max(1e-2), "{path} {numeric} {exact}");
    }
}

#[test]
fn gradients_of_the_kernels_equal_candles_in_f64() {
    if device().is_metal() {
        return; // Metal has no f64
    }
    let params = params();
    let (_, fast) = value_and_grad(|p| loss_of(p, DType::F32), &params).unwrap();
    let params = params.to_dtype(DType::F64).unwrap();
    let (_, exact) = value_and_grad(|p| loss_of(p, DType::F64), &params).unwrap();
    let largest = |x: &Tensor| x.abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
    for (path, exact) in exact.iter().unwrap() {
        let fast = fast.get(path).unwrap().to_dtype(DType::F64).unwrap();
        let difference = largest(&(fast - exact).unwrap());
        assert!(difference <= 2e-5 * largest(exact), "{path}: {difference}");
    }
}

#[test]
fn the_table_and_the_intermediates_show_every_branch() {
    let table = tabulate(&Net, &images()).unwrap();
    let rows = table.rows.iter().map(|row| (row.layer.as_str(), row.output_shape.clone()));
    let expected = [
        ("Conv_0", vec![4, 5, 4, 4]),
        ("gelu_0", vec![4, 5, 4, 4]),
        ("LayerNorm_0", vec![4, 5, 4, 4]),
        ("gelu_1", vec![4, 5, 4, 4]),
        ("add_0", vec![4, 5, 4, 4]),
        ("Conv_1", vec![4, 2, 3, 3]),
        ("Conv_2", vec![4, 2, 3, 2]),
        ("relu_0", vec![4, 2, 3, 2]),
        ("concatenate_0", vec![4, 2, 3, 8]),
        ("global_avg_pool_0", vec![4, 8]),
        ("LayerNorm_1", vec![4, 8]),
        ("Dense_0", vec![4, 3]),
        ("log_softmax_0", vec![4, 3]),
    ];
    assert_eq!(rows.collect::<Vec<_>>(), expected);
    let counts = table.rows.iter().map(|row| row.parameters).collect::<Vec<_>>();
    assert_eq!(counts, [148, 0, 8, 0, 0, 51, 34, 0, 0, 0, 16, 27, 0]);
    let (output, layers) = capture_intermediates(&Net, &params(), &images()).unwrap();
    let layers = layers.iter().map(|(_, output)| output).collect::<Vec<_>>();
    assert_eq!(layers.len(), expected.len());
    let sum = |x: &Tensor| x.sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(sum(layers[12]), sum(&output));
    let parts = [layers[5], layers[7], layers[5]].map(sum);
    assert!((sum(layers[8]) - parts.iter().sum::<f32>()).abs() < 1e-3);
}

#[test]
fn names_follow_flaxs_order_where_layers_repeat() {
    struct Block;
    impl Module for Block {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let strides = Conv { strides: (2, 1), ..Conv::new(2, (3, 3)) };
            let x = nn.conv_with(&strides, x)?;
            let x = nn.layer_norm(&x)?;
            let x = nn.conv(2, (1, 1), &x)?;
            nn.layer_norm(&x)
        }
    }
    struct Blocks;
    impl Module for Blocks {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = nn.layer_norm(x)?;
            let x = nn.module(&Block, &x)?;
            let x = nn.module(&Block, &x)?;
            nn.layer_norm(&x)
        }
    }
    let params = Blocks.init(Key::new(0), &images()).unwrap();
    let layers = params.paths().filter_map(|path| path.strip_suffix("/bias"));
    let expected = [
        "Block_0/Conv_0",
        "Block_0/Conv_1",
        "Block_0/LayerNorm_0",
        "Block_0/LayerNorm_1",
        "Block_1/Conv_0",
        "Block_1/Conv_1",
        "Block_1/LayerNorm_0",
        "Block_1/LayerNorm_1",
        "LayerNorm_0",
        "LayerNorm_1",
    ];
    assert_eq!(layers.collect::<Vec<_>>(), expected);
}

/// A network made of a function.
struct Of<F>(F);

impl<F: Fn(&mut Scope, &Tensor) -> Result<Tensor>> Module for Of<F> {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        (self.0)(nn, x)
    }
}

/// The plan of a network that ends with a dense layer and a log-softmax, or why there is none.
fn plan_of(body: impl Fn(&mut Scope, &Tensor) -> Result<Tensor>) -> String {
    let model = Of(|nn: &mut Scope, x: &Tensor| {
        let x = body(nn, x)?;
        log_softmax(&nn.dense(3, &flatten(&x)?)?)
    });
    plan(&model)
}

/// The plan of a network, or why there is none.
fn plan(model: &impl Module) -> String {
    let params = model.init(Key::new(0), &images()).unwrap();
    let mut jit = Jit::new();
    jit.call(|| no_grad(|| model.apply(&params, &images()))).unwrap();
    jit.to_string()
}

#[test]
fn every_layer_has_a_compiled_form_on_the_cpu() {
    let is_compiled = |plan: &str, layers: &str| {
        if device().is_cpu() {
            assert_eq!(plan, format!("Of, compiled for batches of 4:{layers}"));
        } else {
            assert!(plan.starts_with("Of, not compiled for [4, 10, 7, 3]: "), "{plan}");
        }
    };
    let end = "\n  Dense_0 → log_softmax";
    let strides = Conv { strides: (2, 1), ..Conv::new(3, (3, 3)) };
    is_compiled(
        &plan_of(|nn, x| {
            let x = nn.layer_norm(x)?;
            let x = nn.conv(3, (3, 3), &x)?;
            add(&gelu(&x)?, &relu(&x)?)
        }),
        &format!("\n  LayerNorm_0\n  Conv_0 → gelu → relu\n  add → flatten{end}"),
    );
    is_compiled(
        &plan_of(|nn, x| {
            let x = nn.conv_with(&strides, x)?;
            global_avg_pool(&concatenate(&[&x, &max_pool(&x, (1, 1))?])?)
        }),
        &format!("\n  Conv_0 → max_pool\n  concatenate → global_avg_pool → flatten{end}"),
    );
}

#[test]
fn operations_between_layers_are_not_compiled() {
    if device().is_metal() {
        return; // nothing is compiled for Metal
    }
    // candle's own addition is not seen as a layer.
    let sum = |nn: &mut Scope, x: &Tensor| Ok((nn.conv(3, (3, 3), x)? + x)?);
    assert!(plan_of(sum).contains("operations that are not layers of this crate"));
    // With stride 1 and SAME padding it is the usual convolution.
    let model = Of(|nn: &mut Scope, x: &Tensor| {
        let x = nn.conv_with(&Conv::new(3, (3, 3)), x)?;
        log_softmax(&nn.dense(3, &flatten(&x)?)?)
    });
    assert!(plan(&model).starts_with("Of, compiled for batches of "));
}

/// The layers of a graph.
fn names(graph: &Graph) -> Vec<&str> {
    graph.ops.iter().map(|op| linen::trace::layer_name(&op.layer)).collect()
}

#[test]
fn a_graph_has_the_layers_that_the_output_depends_on() {
    let graph_of = |model: &dyn Fn(&mut Scope, &Tensor) -> Result<Tensor>| {
        let model = Of(model);
        let variables = model.init_variables(Key::new(0), &images()).unwrap();
        graph(&model, &variables, images().dims())
    };
    let unused = graph_of(&|nn, x| {
        nn.conv(2, (3, 3), x)?;
        let y = relu(x)?;
        add(&nn.dropout(0.5, &y)?, x)
    });
    let unused = unused.unwrap();
    assert_eq!(names(&unused), ["relu", "Dropout_0", "add"]);
    assert_eq!(unused.ops[2].inputs, [unused.ops[0].output.id(), unused.input]);
    assert!(names(&graph_of(&|_, x| Ok(x.clone())).unwrap()).is_empty());
    for foreign in [
        graph_of(&|_, x| relu(&(x * 2.0)?)),
        graph_of(&|_, x| Ok((relu(x)? + x)?)),
        graph_of(&|_, x| add(x, &x.zeros_like()?)),
        graph_of(&|_, x| concatenate(&[x, &x.ones_like()?])),
    ] {
        assert!(matches!(foreign, Err(Error::ForeignOperation)), "{foreign:?}");
    }
}

#[test]
fn parameters_and_variables_evaluate_a_network() {
    let images = uniform(Key::new(1), (2, 10, 7, 3), 0.0, 1.0, &device()).unwrap();
    let params = params();
    let sum = |x: Tensor| x.sum_all().unwrap().to_scalar::<f32>().unwrap();
    let expected = sum(Net.apply(&params, &images).unwrap());
    assert_eq!(sum(Net.apply_eval(&params, &images).unwrap()), expected);
    let batch_stats = vec![("BatchNorm_0/mean".to_owned(), images.clone())].try_into().unwrap();
    let variables = Variables { params, batch_stats };
    assert_eq!(sum(Net.apply_eval(&variables, &images).unwrap()), expected);
    assert!(variables.params().paths().eq(Evaluate::params(&variables.params).paths()));
    assert!(variables.batch_stats().is_some_and(|batch_stats| batch_stats.len() == 1));
    assert!(variables.params.batch_stats().is_none());
    let has = |path: &str| variables.variable(path).is_some();
    assert!(has("Conv_0/kernel") && has("BatchNorm_0/mean") && !has("BatchNorm_0/var"));
    assert!(variables.params.variable("BatchNorm_0/mean").is_none());
}
