//! Tests of the kernels and the compiled step against plain loops in f64.

use crate::*;

mod inference;

/// A small deterministic generator of values in [-1, 1).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    fn between(&mut self, first: usize, last: usize) -> usize {
        first + self.below(last - first + 1)
    }

    fn value(&mut self) -> f32 {
        self.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6, |largest: f64, value| largest.max(value.abs()));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / largest;
        assert!(error <= tolerance, "{what}[{index}]: found {found}, expected {expected}");
    }
}

fn momentum(learning_rate: f64, beta: f64) -> UpdateRule {
    UpdateRule::Momentum { learning_rate, beta, nesterov: false }
}

fn to_f64(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Plain loops in f64. Gradients are scatters over the forward loop.
mod reference {
    use crate::*;

    /// Calls `visit(input, kernel, output)` with the indices of every multiply-add.
    pub fn for_each_multiply_add(conv: &Conv2d, mut visit: impl FnMut(usize, usize, usize)) {
        let Conv2d { batch, height, width, in_channels, out_channels, kernel: (kh, kw) } = *conv;
        for n in 0..batch {
            for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                for (ky, kx) in (0..kh).flat_map(|ky| (0..kw).map(move |kx| (ky, kx))) {
                    let (sy, sx) = (y + ky, x + kx);
                    let (top, left) = ((kh - 1) / 2, (kw - 1) / 2);
                    if sy < top || sx < left || sy - top >= height || sx - left >= width {
                        continue;
                    }
                    let source = (n * height + sy - top) * width + sx - left;
                    let target = (n * height + y) * width + x;
                    for ci in 0..in_channels {
                        for co in 0..out_channels {
                            let tap = (ky * kw + kx) * in_channels + ci;
                            visit(
                                source * in_channels + ci,
                                tap * out_channels + co,
                                target * out_channels + co,
                            );
                        }
                    }
                }
            }
        }
    }

    pub fn conv(conv: &Conv2d, input: &[f64], kernel: &[f64], bias: &[f64]) -> Vec<f64> {
        let mut output: Vec<f64> = bias.iter().copied().cycle().take(conv.output_len()).collect();
        for_each_multiply_add(conv, |i, k, o| output[o] += input[i] * kernel[k]);
        output
    }

    /// The indices of each window's pixels, in row-major order.
    pub fn windows(pool: &Pool2d) -> Vec<Vec<usize>> {
        let Pool2d { batch, height, width, channels, window: (wh, ww) } = *pool;
        let mut windows = Vec::new();
        for n in 0..batch {
            for (y, x) in
                (0..height / wh).flat_map(|y| (0..width / ww).map(move |x| (y * wh, x * ww)))
            {
                for c in 0..channels {
                    windows.push(
                        (0..wh)
                            .flat_map(|wy| (0..ww).map(move |wx| (wy, wx)))
                            .map(|(wy, wx)| ((n * height + y + wy) * width + x + wx) * channels + c)
                            .collect(),
                    );
                }
            }
        }
        windows
    }

    pub fn average(pool: &Pool2d, input: &[f64]) -> Vec<f64> {
        let mean = |window: &Vec<usize>| {
            window.iter().map(|&at| input[at]).sum::<f64>() / window.len() as f64
        };
        windows(pool).iter().map(mean).collect()
    }

    /// The index of the first maximum of each window.
    pub fn argmaxes(pool: &Pool2d, input: &[f64]) -> Vec<usize> {
        let argmax = |window: &Vec<usize>| {
            window
                .iter()
                .copied()
                .reduce(|best, at| if input[at] > input[best] { at } else { best })
        };
        windows(pool).iter().filter_map(argmax).collect()
    }

    pub fn dense(dense: &Dense, input: &[f64], kernel: &[f64], bias: &[f64]) -> Vec<f64> {
        let Dense { batch, inputs, outputs } = *dense;
        (0..batch * outputs)
            .map(|at| {
                let (n, o) = (at / outputs, at % outputs);
                let products = (0..inputs).map(|i| input[n * inputs + i] * kernel[i * outputs + o]);
                bias[o] + products.sum::<f64>()
            })
            .collect()
    }

    pub fn log_softmax(input: &[f64], classes: usize) -> Vec<f64> {
        input
            .chunks(classes)
            .flat_map(|row| {
                let log_sum = row.iter().map(|value| value.exp()).sum::<f64>().ln();
                row.iter().map(move |value| value - log_sum)
            })
            .collect()
    }

    /// Log-probabilities of a chain.
    pub fn network(
        [batch, mut height, mut width, mut channels]: [usize; 4],
        layers: &[Layer],
        params: &[Vec<f64>],
        images: &[f64],
    ) -> Vec<f64> {
        let mut x = images.to_vec();
        let mut row_len = 0;
        for layer in layers {
            let shape = |window| Pool2d { batch, height, width, channels, window };
            match *layer {
                Layer::Conv { kernel_size: kernel, features, params: (k, b) } => {
                    let shape = Conv2d {
                        batch,
                        height,
                        width,
                        in_channels: channels,
                        out_channels: features,
                        kernel,
                    };
                    x = conv(&shape, &x, &params[k], &params[b]);
                    channels = features;
                }
                Layer::Relu => x.iter_mut().for_each(|value| *value = value.max(0.0)),
                Layer::AvgPool { window } => {
                    x = average(&shape(window), &x);
                    (height, width) = (height / window.0, width / window.1);
                }
                Layer::MaxPool { window } => {
                    x = argmaxes(&shape(window), &x).into_iter().map(|at| x[at]).collect();
                    (height, width) = (height / window.0, width / window.1);
                }
                Layer::Flatten => row_len = height * width * channels,
                Layer::Dense { features, params: (k, b) } => {
                    let shape = Dense { batch, inputs: row_len, outputs: features };
                    x = dense(&shape, &x, &params[k], &params[b]);
                    row_len = features;
                }
                Layer::LogSoftmax => x = log_softmax(&x, row_len),
                _ => unreachable!("in no program"),
            }
        }
        x
    }

    pub fn loss(log_probs: &[f64], labels: &[u32]) -> f64 {
        let classes = log_probs.len() / labels.len();
        let rows = log_probs.chunks(classes).zip(labels);
        -rows.map(|(row, &label)| row[label as usize]).sum::<f64>() / labels.len() as f64
    }
}

fn random_conv(random: &mut Random) -> Conv2d {
    Conv2d {
        batch: random.between(1, 5),
        height: random.between(1, 9),
        width: random.between(1, 9),
        in_channels: random.between(1, 70),
        out_channels: random.between(1, 70),
        kernel: random_kernel(random),
    }
}

/// In half of the cases a size for Winograd.
fn random_kernel(random: &mut Random) -> (usize, usize) {
    match random.below(4) {
        0 => (3, 3),
        1 => (5, 5),
        _ => (random.between(1, 5), random.between(1, 5)),
    }
}

#[test]
fn convolution_and_its_gradients_match_plain_loops() {
    let mut random = Random(1);
    let mut convs = (0..40).map(|_| random_conv(&mut random)).collect::<Vec<_>>();
    // More tiles than one block holds.
    convs.extend([3, 5].map(|taps| Conv2d {
        batch: 1,
        height: 17,
        width: 31,
        in_channels: 9,
        out_channels: 17,
        kernel: (taps, taps),
    }));
    for conv in convs {
        let what = format!("{conv:?}");
        let input = random.values(conv.input_len());
        let kernel = random.values(conv.kernel_len());
        let bias = random.values(conv.out_channels);
        let d_output = random.values(conv.output_len());

        let mut output = vec![f32::NAN; conv.output_len()];
        conv.forward(&input, &kernel, &bias, &mut output).unwrap();
        let expected = reference::conv(&conv, &to_f64(&input), &to_f64(&kernel), &to_f64(&bias));
        assert_close(&what, &output, &expected, 1e-5);

        let mut d_input = vec![f32::NAN; conv.input_len()];
        conv.backward_input(&kernel, &d_output, &mut d_input).unwrap();
        let mut d_kernel = vec![f32::NAN; conv.kernel_len()];
        let mut d_bias = vec![f32::NAN; conv.out_channels];
        conv.backward_kernel(&input, &d_output, &mut d_kernel, &mut d_bias).unwrap();
        let (input_f64, kernel_f64, d_output_f64) =
            (to_f64(&input), to_f64(&kernel), to_f64(&d_output));
        let mut expected_input = vec![0.0; conv.input_len()];
        let mut expected_kernel = vec![0.0; conv.kernel_len()];
        reference::for_each_multiply_add(&conv, |i, k, o| {
            expected_input[i] += kernel_f64[k] * d_output_f64[o];
            expected_kernel[k] += input_f64[i] * d_output_f64[o];
        });
        let mut expected_bias = vec![0.0; conv.out_channels];
        for (at, d) in d_output_f64.iter().enumerate() {
            expected_bias[at % conv.out_channels] += d;
        }
        assert_close(&what, &d_input, &expected_input, 1e-5);
        assert_close(&what, &d_kernel, &expected_kernel, 1e-5);
        assert_close(&what, &d_bias, &expected_bias, 1e-5);
    }
}

#[test]
fn pooling_and_its_gradients_match_plain_loops() {
    let mut random = Random(2);
    for _ in 0..40 {
        let window = (random.between(1, 4), random.between(1, 4));
        let pool = Pool2d {
            batch: random.between(1, 4),
            height: window.0 + random.below(8),
            width: window.1 + random.below(8),
            channels: random.between(1, 70),
            window,
        };
        let what = format!("{pool:?}");
        // Few distinct values, so that windows have several maxima.
        let input: Vec<f32> =
            (0..pool.input_len()).map(|_| random.between(0, 4) as f32 - 2.0).collect();
        let d_output = random.values(pool.output_len());
        let windows = reference::windows(&pool);
        let mut output = vec![f32::NAN; pool.output_len()];
        let mut d_input = vec![f32::NAN; pool.input_len()];

        pool.average_forward(&input, &mut output).unwrap();
        assert_close(&what, &output, &reference::average(&pool, &to_f64(&input)), 1e-6);
        pool.average_backward(&d_output, &mut d_input).unwrap();
        let mut expected = vec![0.0; pool.input_len()];
        for (window, &d) in windows.iter().zip(&d_output) {
            window.iter().for_each(|&at| expected[at] += f64::from(d) / window.len() as f64);
        }
        assert_close(&what, &d_input, &expected, 1e-6);

        let argmaxes = reference::argmaxes(&pool, &to_f64(&input));
        pool.max_forward(&input, &mut output).unwrap();
        let expected: Vec<f64> = argmaxes.iter().map(|&at| f64::from(input[at])).collect();
        assert_close(&what, &output, &expected, 0.0);
        pool.max_backward(&input, &d_output, &mut d_input).unwrap();
        let mut expected = vec![0.0; pool.input_len()];
        argmaxes.iter().zip(&d_output).for_each(|(&at, &d)| expected[at] += f64::from(d));
        assert_close(&what, &d_input, &expected, 0.0);
    }
}

#[test]
fn statistics_of_an_infinite_value_are_not_finite() {
    let norm = BatchNorm { rows: 4, channels: 2 };
    let statistics = norm.statistics(&[1.0, 2.0, f32::INFINITY, 3.0, 0.0, f32::NAN, 1.0, 1.0]);
    let Statistics { mean, var, .. } = statistics.unwrap();
    assert!(mean[0].is_infinite() && var[0].is_nan() && mean[1].is_nan() && var[1].is_nan());
    // Rounding must not make the variance of a constant negative.
    let statistics = norm.statistics(&[0.1; 8]).unwrap();
    assert!(statistics.var.iter().all(|var| *var >= 0.0));
}

#[test]
fn max_pooling_propagates_nan() {
    let pool = Pool2d { batch: 1, height: 1, width: 3, channels: 1, window: (1, 3) };
    for at in 0..3 {
        let mut input = [1.0, 2.0, 3.0];
        input[at] = f32::NAN;
        let mut output = [0.0];
        pool.max_forward(&input, &mut output).unwrap();
        assert!(output[0].is_nan());
    }
}

#[test]
fn batch_statistics_need_a_row() {
    let error = BatchNorm { rows: 0, channels: 2 }.statistics(&[]).unwrap_err();
    assert_eq!(error, KernelError::NoRows);
    assert!(BatchNorm { rows: 0, channels: 0 }.statistics(&[]).is_ok());
}

#[test]
fn dense_layer_and_its_gradients_match_plain_loops() {
    let mut random = Random(3);
    for _ in 0..30 {
        let dense = Dense {
            batch: random.between(1, 70),
            inputs: random.between(1, 300),
            outputs: random.between(1, 70),
        };
        let what = format!("{dense:?}");
        let input = random.values(dense.input_len());
        let kernel = random.values(dense.kernel_len());
        let bias = random.values(dense.outputs);
        let d_output = random.values(dense.output_len());
        let (input_f64, kernel_f64, d_output_f64) =
            (to_f64(&input), to_f64(&kernel), to_f64(&d_output));

        let mut output = vec![f32::NAN; dense.output_len()];
        dense.forward(&input, &kernel, &bias, &mut output).unwrap();
        let expected = reference::dense(&dense, &input_f64, &kernel_f64, &to_f64(&bias));
        assert_close(&what, &output, &expected, 1e-5);

        let mut d_input = vec![f32::NAN; dense.input_len()];
        dense.backward_input(&kernel, &d_output, &mut d_input).unwrap();
        let mut d_kernel = vec![f32::NAN; dense.kernel_len()];
        let mut d_bias = vec![f32::NAN; dense.outputs];
        dense.backward_kernel(&input, &d_output, &mut d_kernel, &mut d_bias).unwrap();
        let mut expected_input = vec![0.0; dense.input_len()];
        let mut expected_kernel = vec![0.0; dense.kernel_len()];
        let mut expected_bias = vec![0.0; dense.outputs];
        for n in 0..dense.batch {
            for o in 0..dense.outputs {
                let d = d_output_f64[n * dense.outputs + o];
                expected_bias[o] += d;
                for i in 0..dense.inputs {
                    expected_input[n * dense.inputs + i] += d * kernel_f64[i * dense.outputs + o];
                    expected_kernel[i * dense.outputs + o] += d * input_f64[n * dense.inputs + i];
                }
            }
        }
        assert_close(&what, &d_input, &expected_input, 1e-5);
        assert_close(&what, &d_kernel, &expected_kernel, 1e-5);
        assert_close(&what, &d_bias, &expected_bias, 1e-5);
    }
}

#[test]
fn relu_gradient_is_zero_at_zero() {
    let input = [-1.0, -0.0, 0.0, 0.5, f32::NAN];
    let mut output = [9.0; 5];
    relu_forward(&input, &mut output).unwrap();
    assert_eq!(output[..4], [0.0, 0.0, 0.0, 0.5]);
    assert!(output[4].is_nan());
    let mut d_input = [9.0; 5];
    relu_backward(&input, &[2.0; 5], &mut d_input).unwrap();
    assert_eq!(d_input, [0.0, 0.0, 0.0, 2.0, 0.0]);
}

#[test]
fn gelu_and_its_gradient_match_the_formula() {
    let input = (-400..=400).map(|step| step as f32 / 20.0).collect::<Vec<_>>();
    let gelu = |x: f64| {
        let scale = (2.0 / std::f64::consts::PI).sqrt();
        0.5 * x * (1.0 + (scale * (x + 0.044715 * x.powi(3))).tanh())
    };
    let exact = |f: &dyn Fn(f64) -> f64| input.iter().map(|&x| f(x.into())).collect::<Vec<_>>();
    let mut output = vec![f32::NAN; input.len()];
    gelu_forward(&input, &mut output).unwrap();
    for ((found, expected), x) in output.iter().zip(exact(&gelu)).zip(&input) {
        assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected.abs() + 1e-9, "{x}");
    }
    let slope = |x: f64| (gelu(x + 1e-5) - gelu(x - 1e-5)) / 2e-5;
    let mut d_input = vec![f32::NAN; input.len()];
    gelu_backward(&input, &vec![3.0; input.len()], &mut d_input).unwrap();
    for ((found, expected), x) in d_input.iter().zip(exact(&slope)).zip(&input) {
        assert!((f64::from(*found) - 3.0 * expected).abs() <= 2e-6, "{x}");
    }
    // Far from zero all or nothing is left.
    let mut output = [f32::NAN; 3];
    gelu_forward(&[-1e9, 1e9, f32::NAN], &mut output).unwrap();
    assert_eq!(output[..2], [0.0, 1e9]);
    assert!(output[2].is_nan());
}

#[test]
fn log_softmax_and_its_gradient_match_the_formula() {
    let mut random = Random(4);
    for classes in [1, 2, 10, 37] {
        let input = random.values(3 * classes);
        let d_output = random.values(3 * classes);
        let mut output = vec![f32::NAN; 3 * classes];
        log_softmax_forward(&input, classes, &mut output).unwrap();
        let expected = reference::log_softmax(&to_f64(&input), classes);
        assert_close("log-softmax", &output, &expected, 1e-5);
        let mut d_input = vec![f32::NAN; 3 * classes];
        log_softmax_backward(&output, &d_output, classes, &mut d_input).unwrap();
        let row_sum = |at: usize| -> f64 {
            let first = at / classes * classes;
            d_output[first..first + classes].iter().map(|&d| f64::from(d)).sum()
        };
        let d_expected: Vec<f64> = (0..3 * classes)
            .map(|at| f64::from(d_output[at]) - expected[at].exp() * row_sum(at))
            .collect();
        for (found, expected) in d_input.iter().zip(&d_expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-5);
        }
    }
}

#[test]
fn log_softmax_of_large_logits_is_finite() {
    let mut output = [0.0; 2];
    log_softmax_forward(&[1000.0, 0.0], 2, &mut output).unwrap();
    assert_eq!(output, [0.0, -1000.0]);
}

#[test]
fn errors_name_the_slice_with_the_wrong_length() {
    let conv =
        Conv2d { batch: 1, height: 2, width: 2, in_channels: 1, out_channels: 1, kernel: (3, 3) };
    let error = conv.forward(&[0.0; 4], &[0.0; 8], &[0.0], &mut [0.0; 4]).unwrap_err();
    assert_eq!(error.to_string(), "convolution kernel: expected length 9, found 8");
    let conv = Conv2d { kernel: (0, 3), ..conv };
    let error = conv.forward(&[0.0; 4], &[], &[0.0], &mut [0.0; 4]).unwrap_err();
    assert_eq!(error.to_string(), "convolution kernel is 0x3; both must be at least 1");
    let pool = Pool2d { batch: 1, height: 2, width: 2, channels: 1, window: (2, 0) };
    assert!(pool.average_forward(&[0.0; 4], &mut []).is_err());
    assert!(log_softmax_forward(&[0.0; 5], 2, &mut [0.0; 5]).is_err());
}

#[test]
fn overflowing_shapes_fail_the_length_check() {
    const HUGE: usize = usize::MAX;
    let conv = Conv2d {
        batch: 2,
        height: HUGE,
        width: HUGE,
        in_channels: 1,
        out_channels: 1,
        kernel: (HUGE, HUGE),
    };
    let error = conv.forward(&[0.0; 4], &[0.0; 4], &[0.0], &mut [0.0; 4]).unwrap_err();
    assert_eq!(error.to_string(), format!("convolution input: expected length {HUGE}, found 4"));
    let dense = Dense { batch: HUGE, inputs: 3, outputs: 3 };
    let error = dense.forward(&[0.0; 9], &[0.0; 9], &[0.0; 3], &mut [0.0; 9]).unwrap_err();
    assert_eq!(error.to_string(), format!("dense input: expected length {HUGE}, found 9"));
    let pool = Pool2d { batch: 2, height: HUGE, width: 2, channels: 2, window: (1, 1) };
    let error = pool.max_forward(&[0.0; 8], &mut [0.0; 8]).unwrap_err();
    assert_eq!(error.to_string(), format!("pooling input: expected length {HUGE}, found 8"));

    // Arrays are empty if one size is 0, however large the others are.
    let mut output = [0.0; 4];
    let conv = Conv2d { batch: 1, height: 2, width: 2, in_channels: 0, ..conv };
    conv.forward(&[], &[], &[7.0], &mut output).unwrap();
    assert_eq!(output, [7.0; 4]);
    let conv = Conv2d { batch: 0, height: HUGE, in_channels: 1, kernel: (1, 1), ..conv };
    conv.backward_kernel(&[], &[], &mut [1.0], &mut [1.0]).unwrap();
    Dense { batch: 0, inputs: HUGE, outputs: 0 }.forward(&[], &[], &[], &mut []).unwrap();
    let mut d_kernel = [1.0; 100];
    let dense = Dense { batch: 0, inputs: 50, outputs: 2 };
    dense.backward_kernel(&[], &[], &mut d_kernel, &mut [1.0; 2]).unwrap();
    assert_eq!(d_kernel, [0.0; 100]);
    // A window larger than the image gives an empty output and a zero gradient.
    let pool = Pool2d { batch: 1, height: 2, width: 2, channels: 1, window: (HUGE, 2) };
    pool.average_backward(&[], &mut output).unwrap();
    assert_eq!(output, [0.0; 4]);
}

#[test]
fn every_kernel_accepts_an_empty_batch() {
    let conv =
        Conv2d { batch: 0, height: 2, width: 2, in_channels: 1, out_channels: 1, kernel: (3, 3) };
    let (mut d_kernel, mut d_bias) = ([1.0; 9], [1.0]);
    conv.forward(&[], &[0.0; 9], &[0.0], &mut []).unwrap();
    conv.backward_input(&[0.0; 9], &[], &mut []).unwrap();
    conv.backward_kernel(&[], &[], &mut d_kernel, &mut d_bias).unwrap();
    assert_eq!((d_kernel, d_bias), ([0.0; 9], [0.0]));
    let pool = Pool2d { batch: 0, height: 2, width: 2, channels: 1, window: (2, 2) };
    pool.average_forward(&[], &mut []).unwrap();
    pool.max_backward(&[], &[], &mut []).unwrap();
    let dense = Dense { batch: 0, inputs: 2, outputs: 1 };
    dense.forward(&[], &[0.0; 2], &[0.0], &mut []).unwrap();
    dense.backward_kernel(&[], &[], &mut d_kernel[..2], &mut d_bias).unwrap();
    assert_eq!(d_kernel[..2], [0.0; 2]);
}

/// A network with its parameters and a batch of images.
struct Case {
    shape: [usize; 4],
    layers: Vec<Layer>,
    params: Vec<Vec<f32>>,
    images: Vec<f32>,
    labels: Vec<u32>,
}

impl Case {
    /// Scales the parameters to keep activations near 1.
    fn new(random: &mut Random, shape: [usize; 4], layers: Vec<Layer>) -> Self {
        let [batch, mut height, mut width, mut channels] = shape;
        let mut row_len = 0;
        let mut params = Vec::new();
        for layer in &layers {
            let mut add = |random: &mut Random, fan_in: usize, features: usize| {
                let scale = (2.0 / fan_in as f32).sqrt();
                let kernel = random.values(fan_in * features);
                params.push(kernel.iter().map(|value| value * scale).collect());
                params.push(random.values(features).iter().map(|value| value * 0.1).collect());
            };
            match *layer {
                Layer::Conv { kernel_size: kernel, features, .. } => {
                    add(random, kernel.0 * kernel.1 * channels, features);
                    channels = features;
                }
                Layer::AvgPool { window } | Layer::MaxPool { window } => {
                    (height, width) = (height / window.0, width / window.1);
                }
                Layer::Flatten => row_len = height * width * channels,
                Layer::Dense { features, .. } => {
                    add(random, row_len, features);
                    row_len = features;
                }
                Layer::Relu | Layer::LogSoftmax => {}
                _ => unreachable!("in no program"),
            }
        }
        let images = random.values(shape.iter().product());
        let labels = (0..batch).map(|_| random.below(row_len) as u32).collect();
        Self { shape, layers, params, images, labels }
    }

    /// Random sizes, with and without ReLU, with mean, maximum or no pooling.
    fn random(random: &mut Random) -> Self {
        let shape = [
            random.between(1, 20),
            random.between(6, 13),
            random.between(6, 13),
            random.between(1, 5),
        ];
        let (mut height, mut width) = (shape[1], shape[2]);
        let mut layers = Vec::new();
        let mut next = 0;
        let mut params = || {
            next += 2;
            (next - 2, next - 1)
        };
        for _ in 0..random.below(3) {
            layers.push(Layer::Conv {
                kernel_size: random_kernel(random),
                features: random.between(1, 70),
                params: params(),
            });
            if random.below(4) > 0 {
                layers.push(Layer::Relu);
            }
            let window = (random.between(1, height.min(3)), random.between(1, width.min(2)));
            match random.below(3) {
                0 => layers.push(Layer::AvgPool { window }),
                1 => layers.push(Layer::MaxPool { window }),
                _ => continue,
            }
            (height, width) = (height / window.0, width / window.1);
        }
        layers.push(Layer::Flatten);
        for _ in 0..random.below(2) {
            layers.push(Layer::Dense { features: random.between(1, 70), params: params() });
            if random.below(4) > 0 {
                layers.push(Layer::Relu);
            }
        }
        layers.push(Layer::Dense { features: random.between(2, 20), params: params() });
        layers.push(Layer::LogSoftmax);
        Self::new(random, shape, layers)
    }

    fn pooled(random: &mut Random, pooling: Layer) -> Self {
        let layers = vec![
            Layer::Conv { kernel_size: (3, 3), features: 9, params: (0, 1) },
            Layer::Relu,
            pooling,
            Layer::Flatten,
            Layer::Dense { features: 3, params: (2, 3) },
            Layer::LogSoftmax,
        ];
        Self::new(random, [2, 13, 17, 2], layers)
    }

    fn tutorial(random: &mut Random, batch: usize) -> Self {
        let layers = vec![
            Layer::Conv { kernel_size: (3, 3), features: 32, params: (0, 1) },
            Layer::Relu,
            Layer::AvgPool { window: (2, 2) },
            Layer::Conv { kernel_size: (3, 3), features: 64, params: (2, 3) },
            Layer::Relu,
            Layer::AvgPool { window: (2, 2) },
            Layer::Flatten,
            Layer::Dense { features: 256, params: (4, 5) },
            Layer::Relu,
            Layer::Dense { features: 10, params: (6, 7) },
            Layer::LogSoftmax,
        ];
        Self::new(random, [batch, 28, 28, 1], layers)
    }

    fn program(&self) -> Program {
        Program::new(self.shape, &self.layers).unwrap()
    }

    fn params(&self) -> Vec<&[f32]> {
        self.params.iter().map(Vec::as_slice).collect()
    }

    /// The moments before the first step.
    fn moments(&self, rule: UpdateRule) -> Vec<Vec<f32>> {
        let params = (0..rule.moments()).flat_map(|_| &self.params);
        params.map(|param| vec![0.0; param.len()]).collect()
    }

    /// A training step on the batch. It changes the parameters and their moments.
    fn step(
        &mut self,
        program: &mut Program,
        moments: &mut [Vec<f32>],
        rule: UpdateRule,
    ) -> Result<StepResult> {
        let mut params: Vec<&mut [f32]> = self.params.iter_mut().map(Vec::as_mut_slice).collect();
        let mut moments: Vec<&mut [f32]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
        program.train_step(&mut params, &mut moments, &self.images, &self.labels, rule)
    }

    /// A step of rate 0 leaves the parameters as they are, and the gradients as the momentum.
    fn gradients(&mut self, program: &mut Program) -> (StepResult, Vec<Vec<f32>>) {
        let before = self.params.clone();
        let rule = momentum(0.0, 0.0);
        let mut gradients = self.moments(rule);
        let result = self.step(program, &mut gradients, rule).unwrap();
        assert_eq!(self.params, before);
        (result, gradients)
    }

    fn params_f64(&self) -> Vec<Vec<f64>> {
        self.params.iter().map(|param| to_f64(param)).collect()
    }

    fn reference_loss(&self, params: &[Vec<f64>]) -> f64 {
        let log_probs = reference::network(self.shape, &self.layers, params, &to_f64(&self.images));
        reference::loss(&log_probs, &self.labels)
    }

    /// Trains the parameters for `steps` steps on the batch.
    fn train(&mut self, program: &mut Program, steps: usize) -> Vec<StepResult> {
        let rule = momentum(0.1, 0.9);
        let mut moments = self.moments(rule);
        (0..steps).map(|_| self.step(program, &mut moments, rule).unwrap()).collect()
    }
}

#[test]
fn compiled_gradients_match_finite_differences() {
    let mut random = Random(5);
    let mut cases: Vec<Case> = (0..12).map(|_| Case::random(&mut random)).collect();
    // The largest window that a mean supports, and a larger one for a maximum.
    cases.push(Case::pooled(&mut random, Layer::AvgPool { window: (4, 8) }));
    cases.push(Case::pooled(&mut random, Layer::MaxPool { window: (6, 8) }));
    for mut case in cases {
        let (result, gradients) = case.gradients(&mut case.program());
        let mut params = case.params_f64();
        let loss = case.reference_loss(&params);
        assert!((f64::from(result.loss) - loss).abs() < 1e-5 * loss, "{:?}", case.layers);
        for (index, gradient) in gradients.iter().enumerate() {
            let largest = gradient.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
            for _ in 0..4 {
                let at = random.below(gradient.len());
                let mut loss_at = |shift: f64| {
                    let value = f64::from(case.params[index][at]);
                    params[index][at] = value + shift;
                    let loss = case.reference_loss(&params);
                    params[index][at] = value;
                    loss
                };
                let expected = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6;
                let error = (f64::from(gradient[at]) - expected).abs();
                assert!(
                    error <= 2e-5 * f64::from(largest) + 1e-8,
                    "parameter {index}[{at}] of {:?}: found {}, expected {expected}",
                    case.layers,
                    gradient[at]
                );
            }
        }
    }
}

#[test]
fn compiled_log_probabilities_match_plain_loops() {
    let mut random = Random(6);
    for _ in 0..12 {
        let case = Case::random(&mut random);
        let expected =
            reference::network(case.shape, &case.layers, &case.params_f64(), &to_f64(&case.images));
        let mut found = vec![f32::NAN; expected.len()];
        // A smaller plan processes the images in several batches.
        let shape = [case.shape[0].div_ceil(3), case.shape[1], case.shape[2], case.shape[3]];
        for shape in [case.shape, shape] {
            let mut program = Program::new(shape, &case.layers).unwrap();
            program.log_probabilities(&case.params(), &case.images, &mut found).unwrap();
            assert_close("log-probabilities", &found, &expected, 1e-5);
            let result = program.evaluate(&case.params(), &case.images, &case.labels).unwrap();
            let loss = reference::loss(&expected, &case.labels);
            assert!((f64::from(result.loss) - loss).abs() < 1e-5 * loss);
            let classes = expected.len() / case.labels.len();
            let correct = expected
                .chunks(classes)
                .zip(&case.labels)
                .filter(|(row, label)| row.iter().all(|value| *value <= row[**label as usize]));
            assert_eq!(result.correct as usize, correct.count());
        }
    }
}

/// Random rules of every kind, in the midst of training.
fn random_rules(random: &mut Random) -> [UpdateRule; 4] {
    let mut number = |scale: f64| scale * (f64::from(random.value()) + 1.0) / 2.0;
    let adam = |learning_rate, weight_decay| UpdateRule::Adam {
        learning_rate,
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
        weight_decay,
        correction1: 1.0 / (1.0 - 0.9f64.powi(3)),
        correction2: 1.0 / (1.0 - 0.999f64.powi(3)),
    };
    let (learning_rate, beta) = (number(0.1), number(0.9));
    [
        momentum(learning_rate, beta),
        UpdateRule::Momentum { learning_rate, beta, nesterov: true },
        adam(learning_rate, 0.0),
        adam(learning_rate, number(0.1)),
    ]
}

#[test]
fn a_step_updates_every_parameter_as_its_gradient_alone_does() {
    let mut random = Random(7);
    for _ in 0..5 {
        let mut case = Case::random(&mut random);
        let (result, gradients) = case.gradients(&mut case.program());
        for rule in random_rules(&mut random) {
            let mut expected = case.params.clone();
            // A second moment is not negative.
            let mut moments = case.moments(rule);
            moments.iter_mut().flatten().for_each(|value| *value = random.value().abs());
            let mut expected_moments = moments.clone();
            let (firsts, seconds) = expected_moments.split_at_mut(expected.len());
            for (index, gradient) in gradients.iter().enumerate() {
                let mut moments = vec![&mut firsts[index][..]];
                moments.extend(seconds.get_mut(index).map(Vec::as_mut_slice));
                apply_gradient(rule, &mut expected[index], &mut moments, gradient).unwrap();
            }
            let before = case.params.clone();
            assert_eq!(case.step(&mut case.program(), &mut moments, rule).unwrap(), result);
            assert!(case.params == expected && moments == expected_moments, "{rule:?}");
            case.params = before;
        }
    }
}

/// The two halves of a step, with the loss between them computed by the caller.
#[test]
fn forward_and_backward_pass_are_a_step() {
    let mut random = Random(15);
    for _ in 0..5 {
        let mut case = Case::random(&mut random);
        let (_, expected) = case.gradients(&mut case.program());
        let (n, classes) = (case.labels.len(), case.params.last().unwrap().len());
        let mut program = case.program();
        let mut log_probs = vec![0.0; n * classes];
        // The gradient of the mean cross-entropy.
        let mut d_log_probs = vec![0.0; log_probs.len()];
        for (row, &label) in d_log_probs.chunks_exact_mut(classes).zip(&case.labels) {
            row[label as usize] = -1.0 / n as f32;
        }
        program.forward(&case.params(), &case.images, &mut log_probs).unwrap();
        let mut gradients = case.moments(momentum(0.0, 0.0));
        let before = case.params.clone();
        let mut params = case.params.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
        let mut out = gradients.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
        program.gradients(&mut params, &mut out, &d_log_probs).unwrap();
        // A forward pass serves any number of backward passes.
        program.gradients(&mut params, &mut out, &d_log_probs).unwrap();
        assert!(gradients == expected && case.params == before);

        for rule in random_rules(&mut random) {
            let [mut halves, mut whole] = [case.moments(rule), case.moments(rule)];
            case.step(&mut case.program(), &mut whole, rule).unwrap();
            let after = std::mem::replace(&mut case.params, before.clone());
            program.forward(&case.params(), &case.images, &mut log_probs).unwrap();
            let mut params = case.params.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
            let mut moments = halves.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
            program.backward_and_update(&mut params, &mut moments, rule, &d_log_probs).unwrap();
            assert!(case.params == after && halves == whole, "{rule:?}");
            case.params = before.clone();
        }
    }
}

#[test]
fn updates_follow_the_formulas() {
    let mut random = Random(12);
    for rule in random_rules(&mut random) {
        let [p, m, v, g] = [(); 4].map(|()| random.value());
        let [mut param, mut first, mut second] = [[p], [m], [v.abs()]];
        let mut moments = vec![&mut first[..], &mut second[..]];
        moments.truncate(rule.moments());
        apply_gradient(rule, &mut param, &mut moments, &[g]).unwrap();
        let [p, m, v, g] = [p, m, v.abs(), g].map(f64::from);
        let (expected, expected_moments) = match rule {
            UpdateRule::Momentum { learning_rate, beta, nesterov } => {
                let m = beta * m + g;
                let step = if nesterov { beta * m + g } else { m };
                (p - learning_rate * step, vec![m])
            }
            UpdateRule::Adam { learning_rate, beta1, beta2, epsilon, weight_decay, .. } => {
                let (m, v) = (beta1 * m + (1.0 - beta1) * g, beta2 * v + (1.0 - beta2) * g * g);
                let (m_hat, v_hat) = (m / (1.0 - beta1.powi(3)), v / (1.0 - beta2.powi(3)));
                let step = m_hat / (v_hat.sqrt() + epsilon) + weight_decay * p;
                (p - learning_rate * step, vec![m, v])
            }
        };
        let found = [param[0], first[0], second[0]];
        let expected = [vec![expected], expected_moments].concat();
        for (found, expected) in found.into_iter().zip(expected) {
            assert_close(&format!("{rule:?}"), &[found], &[expected], 1e-6);
        }
    }
}

#[test]
fn an_update_of_other_lengths_is_refused_and_changes_nothing() {
    let [nesterov, adam] = [1, 2].map(|index| random_rules(&mut Random(13))[index]);
    let one = [1.0; 3];
    for (rule, moments, grad, what) in [
        (nesterov, vec![3, 3], 3, "moments: expected length 1, found 2"),
        (adam, vec![3], 3, "moments: expected length 2, found 1"),
        (adam, vec![3, 2], 3, "moment: expected length 3, found 2"),
        (nesterov, vec![3], 2, "gradient: expected length 3, found 2"),
    ] {
        let mut param = one;
        let mut moments: Vec<Vec<f32>> = moments.into_iter().map(|len| vec![1.0; len]).collect();
        let mut moments: Vec<&mut [f32]> = moments.iter_mut().map(Vec::as_mut_slice).collect();
        let error = apply_gradient(rule, &mut param, &mut moments, &one[..grad]).unwrap_err();
        assert_eq!(error.to_string(), what);
        assert!(param == one && moments.iter().all(|moment| *moment == &one[..moment.len()]));
    }
}

#[test]
fn unused_moments_decay_to_zero_not_to_subnormals() {
    let adam = UpdateRule::Adam {
        learning_rate: 1e-3,
        beta1: 0.9,
        beta2: 0.9,
        epsilon: 1e-8,
        weight_decay: 0.0,
        correction1: 1.0,
        correction2: 1.0,
    };
    let layers = [
        Layer::Conv { kernel_size: (3, 3), features: 8, params: (0, 1) },
        Layer::Relu,
        Layer::Flatten,
        Layer::Dense { features: 10, params: (2, 3) },
        Layer::LogSoftmax,
    ];
    for rule in [momentum(1e-3, 0.9), adam] {
        let mut case = Case::new(&mut Random(9), [1, 8, 8, 1], layers.to_vec());
        case.images.fill(0.0);
        let mut moments = case.moments(rule);
        moments.iter_mut().flatten().for_each(|value| *value = 1e-36);
        let mut program = case.program();
        for _ in 0..50 {
            case.step(&mut program, &mut moments, rule).unwrap();
        }
        for moments in moments.chunks(case.params.len()) {
            assert!(moments.iter().any(|moment| moment.iter().all(|value| *value == 0.0)));
        }
        let subnormal = moments.iter().flatten().filter(|value| value.is_subnormal());
        assert_eq!(subnormal.count(), 0, "{rule:?}");
    }
}

#[test]
fn training_lowers_the_loss_of_the_tutorial_network() {
    let mut case = Case::tutorial(&mut Random(8), 8);
    let losses = case.train(&mut case.program(), 12);
    assert!(losses[11].loss < 0.5 * losses[0].loss, "{losses:?}");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let mut case = Case::tutorial(&mut Random(9), 19);
            let losses = case.train(&mut case.program(), 2);
            (losses, case.params)
        })
    };
    let single = run(1);
    assert!(single == run(2) && single == run(5));
}

#[test]
fn a_program_accepts_batches_of_different_sizes() {
    let mut random = Random(10);
    let mut case = Case::random(&mut random);
    case.shape[0] = 40;
    let mut shared = case.program();
    for batch in [40, 1, 33, 40, 7] {
        case.shape[0] = batch;
        case.images = random.values(case.shape.iter().product());
        case.labels = vec![1; batch];
        assert_eq!(case.gradients(&mut shared), case.gradients(&mut case.program()));
    }
}

#[test]
fn an_out_of_range_label_is_an_error_and_changes_nothing() {
    let mut case = Case::tutorial(&mut Random(11), 2);
    case.labels[1] = 10;
    let before = case.params.clone();
    let mut moments = before.clone();
    let mut program = case.program();
    let error = case.step(&mut program, &mut moments, momentum(0.1, 0.9)).unwrap_err();
    assert_eq!(error.to_string(), "label 10 of image 1 is not below the number of classes, 10");
    assert_eq!((&case.params, &moments), (&before, &before));
}

#[test]
fn errors_say_why_a_chain_cannot_be_compiled() {
    let conv = || Layer::Conv { kernel_size: (3, 3), features: 2, params: (0, 1) };
    let dense = |params| Layer::Dense { features: 2, params };
    let cases: [(&[Layer], &str); 11] = [
        (
            &[Layer::Flatten, Layer::LogSoftmax],
            "layer 1 cannot be compiled: LogSoftmax must follow a dense layer",
        ),
        (&[dense((0, 1))], "layer 0 cannot be compiled: a dense layer needs flat values"),
        (&[Layer::Flatten, conv()], "layer 1 cannot be compiled: a convolution needs images"),
        (
            &[Layer::BatchNorm { params: (0, 1) }],
            "layer 0 cannot be compiled: a `Program` has no training",
        ),
        (&[Layer::Relu], "layer 0 cannot be compiled: ReLU must directly follow"),
        (
            &[Layer::MaxPool { window: (2, 2) }],
            "layer 0 cannot be compiled: pooling must directly follow",
        ),
        (
            &[conv(), Layer::AvgPool { window: (6, 6) }],
            "layer 1 cannot be compiled: the window has 36 pixels",
        ),
        (
            &[conv(), Layer::MaxPool { window: (1, 7) }],
            "layer 1 cannot be compiled: the window (1, 7) is larger than the image, 6x6",
        ),
        (&[Layer::Flatten, dense((0, 0))], "layer 1 cannot be compiled: parameter 0 is used twice"),
        (
            &[Layer::Flatten, dense((0, 2))],
            "layer 1 cannot be compiled: parameter 2 is out of range: there are 2",
        ),
        (
            &[Layer::Flatten, dense((0, 1))],
            "layer 2 cannot be compiled: the chain must end with LogSoftmax",
        ),
    ];
    for (layers, reason) in cases {
        let error = check_chain([1, 6, 6, 1], layers).unwrap_err();
        assert!(error.to_string().starts_with(reason), "{error}");
        assert_eq!(Program::new([1, 6, 6, 1], layers).unwrap_err(), error);
    }
    let zero = Program::new([0, 6, 6, 1], &[]).unwrap_err().to_string();
    assert!(zero.contains("contain a 0"), "{zero}");
    let huge = [Layer::Flatten, Layer::Dense { features: usize::MAX, params: (0, 1) }];
    let huge = Program::new([1, 6, 6, 1], &huge).unwrap_err().to_string();
    assert!(huge.contains("too large"), "{huge}");
}
