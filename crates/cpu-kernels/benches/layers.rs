//! The layers of the MNIST tutorial and its training step, batch size 32.
//!
//! `cargo bench -p cpu-kernels --bench layers [part of a name]`

use std::hint::black_box;

use cpu_kernels::{
    Conv2d, Dense, Layer, Pool2d, Program, Result, UpdateRule, log_softmax_backward,
    log_softmax_forward, relu_backward, relu_forward,
};
use criterion::{Criterion, criterion_group, criterion_main};

const BATCH: usize = 32;

criterion_group!(benches, convolutions, pools, dense_layers, activations, step);
criterion_main!(benches);

fn convolutions(criterion: &mut Criterion) {
    let layer = |size, in_channels, out_channels| Conv2d {
        batch: BATCH,
        height: size,
        width: size,
        in_channels,
        out_channels,
        kernel: (3, 3),
    };
    for (name, conv) in [("conv1", layer(28, 1, 32)), ("conv2", layer(14, 32, 64))] {
        let (input, kernel) = (values(conv.input_len()), values(conv.kernel_len()));
        let (bias, d_output) = (values(conv.out_channels), values(conv.output_len()));
        time(criterion, &format!("{name} forward"), conv.output_len(), |output| {
            conv.forward(&input, &kernel, &bias, output)
        });
        time(criterion, &format!("{name} backward input"), conv.input_len(), |d_input| {
            conv.backward_input(&kernel, &d_output, d_input)
        });
        let mut d_bias = values(conv.out_channels);
        time(criterion, &format!("{name} backward kernel"), conv.kernel_len(), |d_kernel| {
            conv.backward_kernel(&input, &d_output, d_kernel, &mut d_bias)
        });
    }
}

fn pools(criterion: &mut Criterion) {
    let layer = |size, channels| Pool2d {
        batch: BATCH,
        height: size,
        width: size,
        channels,
        window: (2, 2),
    };
    for (name, pool) in [("pool1", layer(28, 32)), ("pool2", layer(14, 64))] {
        let (input, d_output) = (values(pool.input_len()), values(pool.output_len()));
        time(criterion, &format!("{name} average forward"), pool.output_len(), |output| {
            pool.average_forward(&input, output)
        });
        time(criterion, &format!("{name} average backward"), pool.input_len(), |d_input| {
            pool.average_backward(&d_output, d_input)
        });
        time(criterion, &format!("{name} max forward"), pool.output_len(), |output| {
            pool.max_forward(&input, output)
        });
        time(criterion, &format!("{name} max backward"), pool.input_len(), |d_input| {
            pool.max_backward(&input, &d_output, d_input)
        });
    }
}

fn dense_layers(criterion: &mut Criterion) {
    for (name, inputs, outputs) in [("dense1", 3136, 256), ("dense2", 256, 10)] {
        let dense = Dense { batch: BATCH, inputs, outputs };
        let (input, kernel) = (values(dense.input_len()), values(dense.kernel_len()));
        let (bias, d_output) = (values(outputs), values(dense.output_len()));
        time(criterion, &format!("{name} forward"), dense.output_len(), |output| {
            dense.forward(&input, &kernel, &bias, output)
        });
        time(criterion, &format!("{name} backward input"), dense.input_len(), |d_input| {
            dense.backward_input(&kernel, &d_output, d_input)
        });
        let mut d_bias = values(outputs);
        time(criterion, &format!("{name} backward kernel"), dense.kernel_len(), |d_kernel| {
            dense.backward_kernel(&input, &d_output, d_kernel, &mut d_bias)
        });
    }
}

fn activations(criterion: &mut Criterion) {
    let len = BATCH * 28 * 28 * 32;
    let (input, d_output) = (values(len), values(len));
    time(criterion, "relu1 forward", len, |output| relu_forward(&input, output));
    time(criterion, "relu1 backward", len, |d_input| relu_backward(&input, &d_output, d_input));
    let (input, d_output) = (values(BATCH * 10), values(BATCH * 10));
    time(criterion, "log_softmax forward", BATCH * 10, |output| {
        log_softmax_forward(&input, 10, output)
    });
    time(criterion, "log_softmax backward", BATCH * 10, |d_input| {
        log_softmax_backward(&input, &d_output, 10, d_input)
    });
}

fn step(criterion: &mut Criterion) {
    let window = (2, 2);
    let conv = |features, params| Layer::Conv { kernel_size: (3, 3), features, params };
    let layers = [
        conv(32, (0, 1)),
        Layer::Relu,
        Layer::AvgPool { window },
        conv(64, (2, 3)),
        Layer::Relu,
        Layer::AvgPool { window },
        Layer::Flatten,
        Layer::Dense { features: 256, params: (4, 5) },
        Layer::Relu,
        Layer::Dense { features: 10, params: (6, 7) },
        Layer::LogSoftmax,
    ];
    let mut program = expect(Program::new([BATCH, 28, 28, 1], &layers));
    let lens = [9 * 32, 32, 9 * 32 * 64, 64, 3136 * 256, 256, 256 * 10, 10];
    // Small weights and rates, so that the loss stays finite however often the step is repeated.
    let mut params = lens.map(|len| values(len).iter().map(|value| value / 10.0).collect());
    let mut momentum = lens.map(|len| vec![0.0; len]);
    let rule = UpdateRule::Momentum { learning_rate: 1e-6, beta: 0.9, nesterov: false };
    let (images, labels) = (values(BATCH * 28 * 28), [3; BATCH]);
    criterion.bench_function("training step", |bencher| {
        bencher.iter(|| {
            let params = &mut params.each_mut().map(Vec::as_mut_slice);
            let momentum = &mut momentum.each_mut().map(Vec::as_mut_slice);
            expect(program.train_step(params, momentum, &images, &labels, rule))
        });
    });
}

/// Times a kernel that writes `len` values.
fn time(
    criterion: &mut Criterion,
    name: &str,
    len: usize,
    mut kernel: impl FnMut(&mut [f32]) -> Result<()>,
) {
    let mut output = vec![0.0; len];
    criterion.bench_function(name, |bencher| {
        bencher.iter(|| {
            expect(kernel(&mut output));
            black_box(&mut output);
        });
    });
}

/// Ordinary values of both signs.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|index| (index * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

#[track_caller]
fn expect<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
