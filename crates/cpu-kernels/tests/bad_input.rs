//! Shapes and slices that do not match cause errors, never panics.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cpu_kernels::{
    BatchNorm, Conv2d, Dense, GeneralConv2d, GraphProgram, Layer, Mode, Node, Padding, Pool2d,
    Program, Statistics, UpdateRule, apply_gradient, check_chain, check_graph, dropout,
    dropout_factors, gelu_backward, gelu_forward, instruction_set, log_softmax_backward,
    log_softmax_forward, relu_backward, relu_forward, saturating_product,
};

/// Records `what` if the call panics. Its result does not matter.
fn check<T>(panics: &mut Vec<String>, what: impl FnOnce() -> String, call: impl FnOnce() -> T) {
    if catch_unwind(AssertUnwindSafe(|| drop(call()))).is_err() {
        panics.push(what());
    }
}

#[test]
fn a_product_that_overflows_is_the_largest_number_unless_a_factor_is_zero() {
    assert_eq!(saturating_product(&[]), 1);
    assert_eq!(saturating_product(&[1 << 40, 1 << 40]), usize::MAX);
    assert_eq!(saturating_product(&[1 << 40, 1 << 40, 0]), 0);
}

#[test]
fn no_kernel_panics() {
    let sizes = [0, 1, 2, 5, 1 << 40, usize::MAX];
    let mut panics = Vec::new();
    let buffers = || ([0.5f32; 4], [0.5f32; 4], [0f32; 4], [0f32; 2]);
    for a in sizes {
        for b in sizes {
            let what = |name: &str| format!("{name} {a} {b}");
            let (x, y, mut z, mut w) = buffers();
            let conv = Conv2d {
                batch: a,
                height: b,
                width: 2,
                in_channels: a,
                out_channels: 1,
                kernel: (b, 1),
            };
            check(
                &mut panics,
                || what("conv"),
                || {
                    let _ = (conv.input_len(), conv.kernel_len(), conv.output_len());
                    drop(conv.forward(&x, &y, &x, &mut z));
                    drop(conv.backward_input(&x, &y, &mut z));
                    drop(conv.backward_kernel(&x, &y, &mut z, &mut w));
                },
            );
            for padding in [Padding::Same, Padding::Valid] {
                let conv = GeneralConv2d {
                    batch: a,
                    height: b,
                    width: 2,
                    in_channels: a,
                    out_channels: 1,
                    kernel: (b, 1),
                    strides: (a, b),
                    padding,
                };
                check(
                    &mut panics,
                    || what("general conv"),
                    || {
                        let _ = (conv.input_len(), conv.kernel_len(), conv.output_len());
                        let _ = (
                            conv.output_size(),
                            padding.output_size(a, b, a),
                            padding.zeros(a, b, a),
                        );
                        drop(conv.forward(&x, &y, &x, &mut z));
                        drop(conv.backward_input(&x, &y, &mut z));
                        drop(conv.backward_kernel(&x, &y, &mut z, &mut w));
                    },
                );
            }
            let dense = Dense { batch: a, inputs: b, outputs: 2 };
            check(
                &mut panics,
                || what("dense"),
                || {
                    let _ = (dense.input_len(), dense.kernel_len(), dense.output_len());
                    drop(dense.forward(&x, &y, &x, &mut z));
                    drop(dense.backward_input(&x, &y, &mut z));
                    drop(dense.backward_kernel(&x, &y, &mut z, &mut w));
                },
            );
            let pool = Pool2d { batch: 1, height: 2, width: a, channels: 1, window: (b, a) };
            check(
                &mut panics,
                || what("pool"),
                || {
                    let _ = (pool.input_len(), pool.output_len());
                    drop((pool.average_forward(&x, &mut z), pool.max_forward(&x, &mut z)));
                    drop(pool.average_backward(&x, &mut z));
                    drop(pool.max_backward(&x, &y, &mut z));
                },
            );
            let norm = BatchNorm { rows: a, channels: b };
            let statistics =
                Statistics { mean: x[..a.min(4)].to_vec(), var: y.to_vec(), is_training: true };
            check(
                &mut panics,
                || what("batch norm"),
                || {
                    drop(norm.statistics(&x[..a.saturating_mul(b).min(4)]));
                    drop(norm.forward(&x, &statistics, &x, &y, &mut z));
                    drop(norm.backward_params(&x, &statistics, &y, &mut z, &mut w));
                    drop(norm.backward_input(&x, &statistics, &x, &y, &x, &y, &mut z));
                    drop(dropout(&x[..a.min(4)], 0.5, |i| [i < b; 2], &mut z));
                },
            );
            check(
                &mut panics,
                || what("activation"),
                || {
                    drop(relu_forward(&x[..a.min(4)], &mut z[..b.min(4)]));
                    drop(relu_backward(&x[..a.min(4)], &y, &mut z[..b.min(4)]));
                    drop(gelu_forward(&x[..a.min(4)], &mut z[..b.min(4)]));
                    drop(gelu_backward(&x[..a.min(4)], &y, &mut z[..b.min(4)]));
                    drop(log_softmax_forward(&x[..a.min(4)], b, &mut z));
                    drop(log_softmax_backward(&x, &y, b, &mut z));
                },
            );
            let params = (a, b);
            let layers = [
                Layer::Conv { kernel_size: (a, b), features: a, params },
                Layer::Relu,
                Layer::AvgPool { window: (b, a) },
                Layer::Flatten,
                Layer::Dense { features: b, params },
                Layer::LogSoftmax,
            ];
            for start in 0..layers.len() {
                check(
                    &mut panics,
                    || what("program"),
                    || {
                        let (shape, layers) = ([a, b, 2, 1], &layers[start..]);
                        let _ = saturating_product(&shape);
                        let is_sound = check_chain(shape, layers).is_ok();
                        let program = Program::new(shape, layers);
                        assert_eq!(is_sound, program.is_ok());
                        let Ok(mut program) = program else { return };
                        let labels = [7; 4];
                        let rule =
                            UpdateRule::Momentum { learning_rate: 0.1, beta: 0.9, nesterov: true };
                        drop(apply_gradient(rule, &mut z, &mut [&mut w], &x));
                        drop(apply_gradient(rule, &mut z, &mut [], &x[rule.moments()..]));
                        let (params, momentum) = (&mut [&mut z[..]], &mut [&mut w[..]]);
                        drop((program.batch(), program.evaluate(&[&x], &y, &labels)));
                        drop(program.train_step(&mut [], &mut [], &x, &labels, rule));
                        drop(program.train_step(params, momentum, &x, &labels, rule));
                        drop(program.forward(&[&x], &y, params[0]));
                        drop(program.backward_and_update(params, momentum, rule, &y));
                        drop(program.gradients(params, momentum, &x));
                        drop(program.log_probabilities(&[&x], &y, &mut w));
                    },
                );
            }
            let layers = [
                layers[0].clone(),
                Layer::GeneralConv {
                    kernel_size: (b, a),
                    strides: (a, b),
                    padding: Padding::Valid,
                    features: b,
                    params,
                },
                Layer::BatchNorm { params },
                Layer::Relu,
                Layer::MaxPool { window: (a, b) },
                Layer::AvgPool { window: (b, a) },
                Layer::Add,
                Layer::Concatenate,
                Layer::LayerNorm { params },
                Layer::Gelu,
                Layer::Dropout { rate: 0.5, name: params },
                Layer::GlobalAvgPool,
                Layer::Flatten,
                Layer::Dense { features: b, params },
                Layer::LogSoftmax,
            ];
            for (index, layer) in layers.iter().enumerate() {
                check(
                    &mut panics,
                    || what(&format!("graph of {layer:?}")),
                    || {
                        let next = layers[(index + 1) % layers.len()].clone();
                        let nodes = [
                            Node { layer: layer.clone(), inputs: vec![0, a.min(1)] },
                            Node { layer: next, inputs: vec![b.min(2), 1] },
                        ];
                        let nodes = &nodes[..1 + b % 2];
                        let is_sound = check_graph(&[a, b, 2, 1], nodes).is_ok();
                        let program = GraphProgram::new(&[a, b, 2, 1], nodes);
                        assert_eq!(is_sound, program.is_ok());
                        let Ok(mut program) = program else { return };
                        let rule =
                            UpdateRule::Momentum { learning_rate: 0.1, beta: 0.9, nesterov: true };
                        let dropout = |_: usize, first: usize, factors: &mut [f32]| {
                            dropout_factors(0.5, first, |index| [index < 2; 3], factors);
                        };
                        let training = Mode::Train { dropout: &dropout };
                        let evaluation = Mode::Evaluate { running: &[] };
                        let (params, momentum) = (&mut [&mut z[..]], &mut [&mut w[..]]);
                        for mode in [training, evaluation] {
                            drop(program.forward(&[], mode, &x, params[0]));
                            drop(program.forward(&[&x, &y], mode, &y, params[0]));
                            drop(program.backward_and_update(params, momentum, rule, &y));
                            drop(program.gradients(params, momentum, &x));
                            drop(program.gradients(&mut [], &mut [], &x));
                        }
                        let _ = (program.statistics().len(), instruction_set());
                    },
                );
            }
        }
    }
    assert!(panics.is_empty(), "panics:\n{}", panics.join("\n"));
}
