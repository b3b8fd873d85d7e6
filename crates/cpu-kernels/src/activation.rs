//! ReLU, GELU and log-softmax.

use rayon::prelude::*;

use crate::error::{Result, check_len};
use crate::gemm::vectorized;

/// Values per task.
const CHUNK: usize = 1 << 14;

/// `output = max(input, 0)`; NaN stays NaN.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn relu_forward(input: &[f32], output: &mut [f32]) -> Result<()> {
    check_len("ReLU output", input.len(), output.len())?;
    let chunks = output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK));
    chunks.for_each(|(output, input)| relu_row(input, output));
    Ok(())
}

pub(crate) fn relu_row(input: &[f32], output: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for (output, &input) in output.iter_mut().zip(input) {
                *output = relu_of(input);
            }
        },
    );
}

/// Gradient of the input, given that of the output: 0 where the input is ≤ 0, as in JAX. `input`
/// may also be the output of the ReLU, which is positive for the same elements.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn relu_backward(input: &[f32], d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
    check_len("ReLU output gradient", input.len(), d_output.len())?;
    check_len("ReLU input gradient", input.len(), d_input.len())?;
    d_input
        .par_chunks_mut(CHUNK)
        .zip(input.par_chunks(CHUNK))
        .zip(d_output.par_chunks(CHUNK))
        .for_each(|((d_input, input), d_output)| relu_backward_row(input, d_output, d_input));
    Ok(())
}

pub(crate) fn relu_backward_row(input: &[f32], d_output: &[f32], d_input: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for ((d_input, d_output), &input) in d_input.iter_mut().zip(d_output).zip(input) {
                *d_input = if input > 0.0 { *d_output } else { 0.0 };
            }
        },
    );
}

/// `max(value, 0)`; NaN stays NaN.
#[inline(always)]
pub(crate) fn relu_of(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

/// GELU, by its approximation with tanh: `x/2 · (1 + tanh(√(2/π) · (x + 0.044715·x³)))`.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn gelu_forward(input: &[f32], output: &mut [f32]) -> Result<()> {
    check_len("GELU output", input.len(), output.len())?;
    output.par_chunks_mut(CHUNK).zip(input.par_chunks(CHUNK)).for_each(|(output, input)| {
        gelu_row(input, output);
    });
    Ok(())
}

pub(crate) fn gelu_row(input: &[f32], output: &mut [f32]) {
    for (output, &x) in output.iter_mut().zip(input) {
        *output = x * gelu_gate(x).0;
    }
}

/// Gradient of the input, given that of the output.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length.
pub fn gelu_backward(input: &[f32], d_output: &[f32], d_input: &mut [f32]) -> Result<()> {
    check_len("GELU output gradient", input.len(), d_output.len())?;
    check_len("GELU input gradient", input.len(), d_input.len())?;
    d_input
        .par_chunks_mut(CHUNK)
        .zip(input.par_chunks(CHUNK))
        .zip(d_output.par_chunks(CHUNK))
        .for_each(|((d_input, input), d_output)| gelu_backward_row(input, d_output, d_input));
    Ok(())
}

pub(crate) fn gelu_backward_row(input: &[f32], d_output: &[f32], d_input: &mut [f32]) {
    for ((d_input, d_output), &x) in d_input.iter_mut().zip(d_output).zip(input) {
        let (gate, d_gate) = gelu_gate(x);
        let slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBE * x * x);
        *d_input = d_output * (gate + x * slope * d_gate);
    }
}

/// 2·√(2/π)
const GELU_SCALE: f32 = 1.595_769;
const GELU_CUBE: f32 = 0.044715;

/// The share of a value that GELU keeps, `(1 + tanh u) / 2`, and its derivative by 2u. As a sigmoid
/// of 2u it cancels no digits where the share is small, and takes a faster exponential.
fn gelu_gate(x: f32) -> (f32, f32) {
    let small = (-(GELU_SCALE * (x + GELU_CUBE * x * x * x)).abs()).exp();
    let large = 1.0 / (1.0 + small);
    (if x < 0.0 { small * large } else { large }, small * large * large)
}

/// `output = input − ln Σ exp(input)` for each row of `classes` values.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length or do not
/// hold complete rows.
pub fn log_softmax_forward(input: &[f32], classes: usize, output: &mut [f32]) -> Result<()> {
    check_rows("log-softmax input", classes, input.len())?;
    check_len("log-softmax output", input.len(), output.len())?;
    let classes = classes.max(1);
    for (input, output) in input.chunks_exact(classes).zip(output.chunks_exact_mut(classes)) {
        log_softmax_row(input, output);
    }
    Ok(())
}

pub(crate) fn log_softmax_row(input: &[f32], output: &mut [f32]) {
    let max = input.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = input.iter().map(|value| (value - max).exp()).sum();
    let log_sum = sum.ln();
    for (output, value) in output.iter_mut().zip(input) {
        *output = value - max - log_sum;
    }
}

/// Gradient of the input, given that of the output:
/// `d_input = d_output − exp(output) · Σ d_output` for each row of `classes` values.
///
/// # Errors
/// [`KernelError::Length`](crate::KernelError::Length) if the slices differ in length or do not
/// hold complete rows.
pub fn log_softmax_backward(
    output: &[f32],
    d_output: &[f32],
    classes: usize,
    d_input: &mut [f32],
) -> Result<()> {
    check_rows("log-softmax output", classes, output.len())?;
    check_len("log-softmax output gradient", output.len(), d_output.len())?;
    check_len("log-softmax input gradient", output.len(), d_input.len())?;
    let classes = classes.max(1);
    let rows = output.chunks_exact(classes).zip(d_output.chunks_exact(classes));
    for (d_input, (output, d_output)) in d_input.chunks_exact_mut(classes).zip(rows) {
        log_softmax_backward_row(output, d_output, d_input);
    }
    Ok(())
}

pub(crate) fn log_softmax_backward_row(output: &[f32], d_output: &[f32], d_input: &mut [f32]) {
    let sum: f32 = d_output.iter().sum();
    for ((d_input, d_output), output) in d_input.iter_mut().zip(d_output).zip(output) {
        *d_input = d_output - output.exp() * sum;
    }
}

fn check_rows(what: &'static str, classes: usize, found: usize) -> Result<()> {
    let classes = classes.max(1);
    check_len(what, found / classes * classes, found)
}
