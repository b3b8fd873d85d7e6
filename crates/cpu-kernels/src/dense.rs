//! Dense layers with `[inputs, outputs]` kernels, as in Flax.

use rayon::prelude::*;

use crate::activation::relu_of;
use crate::buffer::with_scratch;
use crate::error::{Result, check_len};
use crate::gemm::{Gemm, Init, KStrides, RowStrides, vectorized};
use crate::purpose::Purpose;
use crate::shape::saturating_product;
use crate::sums::{add_rows, transpose};

/// A dense layer of a given shape.
///
/// # Shapes
/// * input `[batch, inputs]`
/// * kernel `[inputs, outputs]`, bias `[outputs]`
/// * output `[batch, outputs]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dense {
    /// Number of rows.
    pub batch: usize,
    /// Inputs per row.
    pub inputs: usize,
    /// Outputs per row.
    pub outputs: usize,
}

/// The most rows of the batch per task of the forward product.
const ROWS: usize = 32;

/// Tasks of the forward product: if the batch gives fewer, the sum over the inputs is cut, too.
const TASKS: usize = 16;

/// Parts of the sum over the inputs in inference, where they must not depend on the batch.
const INFERENCE_PARTS: usize = 4;

/// Kernel values per block of the backward pass. A block and its gradient fit in the L1 cache.
const BLOCK_VALUES: usize = 7 * 1024;

impl Dense {
    /// Number of values in the input.
    pub fn input_len(&self) -> usize {
        saturating_product(&[self.batch, self.inputs])
    }

    /// Number of values in the kernel.
    pub fn kernel_len(&self) -> usize {
        saturating_product(&[self.inputs, self.outputs])
    }

    /// Number of values in the output.
    pub fn output_len(&self) -> usize {
        saturating_product(&[self.batch, self.outputs])
    }

    /// `output = input · kernel + bias`.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape.
    pub fn forward(
        &self,
        input: &[f32],
        kernel: &[f32],
        bias: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        self.check(input.len(), kernel.len(), output.len())?;
        check_len("bias", self.outputs, bias.len())?;
        with_scratch([self.partials_len(Purpose::Training)], |[partials]| {
            self.multiply(Purpose::Training, input, self.inputs, kernel, partials);
            self.sum_partials(partials, bias, false, output);
        });
        Ok(())
    }

    /// Gradient of the input, given that of the output.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape.
    pub fn backward_input(
        &self,
        kernel: &[f32],
        d_output: &[f32],
        d_input: &mut [f32],
    ) -> Result<()> {
        self.check(d_input.len(), kernel.len(), d_output.len())?;
        d_input.fill(0.0);
        if d_input.is_empty() || d_output.is_empty() {
            return Ok(());
        }
        with_scratch([self.output_len(), self.input_len()], |[transposed, blocks]| {
            transpose(d_output, self.outputs, transposed);
            let transposed = &*transposed;
            let rows = self.block_rows();
            blocks
                .par_chunks_mut(rows * self.batch)
                .zip(kernel.par_chunks(rows * self.outputs))
                .for_each(|(block, kernel)| self.input_gradient_block(kernel, transposed, block));
            let blocks = &*blocks;
            d_input
                .par_chunks_mut(self.inputs)
                .enumerate()
                .for_each(|(image, d_input)| self.gather_input_gradient(blocks, image, d_input));
        });
        Ok(())
    }

    /// Gradients of kernel and bias, given that of the output.
    ///
    /// # Errors
    /// [`KernelError::Length`](crate::KernelError::Length) if a slice does not fit the shape.
    pub fn backward_kernel(
        &self,
        input: &[f32],
        d_output: &[f32],
        d_kernel: &mut [f32],
        d_bias: &mut [f32],
    ) -> Result<()> {
        self.check(input.len(), d_kernel.len(), d_output.len())?;
        check_len("bias gradient", self.outputs, d_bias.len())?;
        d_bias.fill(0.0);
        add_rows(d_output, d_bias);
        if d_kernel.is_empty() {
            return Ok(());
        }
        let rows = self.block_rows();
        d_kernel.par_chunks_mut(rows * self.outputs).enumerate().for_each(|(block, d_kernel)| {
            let input = input.get(block * rows..).unwrap_or_default();
            self.kernel_gradient_block(input, self.inputs, d_output, d_kernel);
        });
        Ok(())
    }

    fn check(&self, input: usize, kernel: usize, output: usize) -> Result<()> {
        check_len("dense input", self.input_len(), input)?;
        check_len("dense kernel", self.kernel_len(), kernel)?;
        check_len("dense output", self.output_len(), output)
    }

    /// Inputs per partial sum of the forward product.
    fn k_per_partial(&self, purpose: Purpose) -> usize {
        let parts = match purpose {
            Purpose::Training => (TASKS / self.batch.div_ceil(ROWS).max(1)).max(1),
            Purpose::Inference => INFERENCE_PARTS,
        };
        self.inputs.div_ceil(parts).max(1)
    }

    /// Number of values in all partial sums of the forward product.
    pub(crate) fn partials_len(&self, purpose: Purpose) -> usize {
        self.inputs.div_ceil(self.k_per_partial(purpose)) * self.output_len()
    }

    /// Rows of the batch per task of the forward product: nearly equal parts.
    fn rows_per_task(&self) -> usize {
        self.batch.div_ceil(self.batch.div_ceil(ROWS))
    }

    /// Computes the forward product as partial sums `[part, batch, outputs]`. The batch is small
    /// and the kernel large, so the sum over the inputs is cut into tasks. Each task reads its part
    /// of the kernel once.
    pub(crate) fn multiply(
        &self,
        purpose: Purpose,
        input: &[f32],
        input_row: usize,
        kernel: &[f32],
        partials: &mut [f32],
    ) {
        if partials.is_empty() {
            return;
        }
        let (k, rows) = (self.k_per_partial(purpose), self.rows_per_task());
        partials
            .par_chunks_mut(self.output_len())
            .zip(kernel.par_chunks(k * self.outputs))
            .enumerate()
            .for_each(|(part, (partial, kernel))| {
                partial.par_chunks_mut(rows * self.outputs).enumerate().for_each(
                    |(task, output)| {
                        let gemm = Gemm {
                            m: output.len() / self.outputs,
                            n: self.outputs,
                            k_outer: 1,
                            k_inner: kernel.len() / self.outputs,
                            a_rows: RowStrides::uniform(input_row),
                            a: KStrides::uniform(1),
                            b: KStrides::uniform(self.outputs),
                            c_row: self.outputs,
                            init: Init::Zero,
                        };
                        let first = task * rows * input_row + part * k;
                        gemm.run(&input[first..], kernel, output);
                    },
                );
            });
    }

    /// `output` = bias + partial sums, added in order, followed by a ReLU if `relu` is set.
    pub(crate) fn sum_partials(
        &self,
        partials: &[f32],
        bias: &[f32],
        relu: bool,
        output: &mut [f32],
    ) {
        if output.is_empty() {
            return;
        }
        let len = self.output_len();
        output.par_chunks_mut(ROWS / 4 * self.outputs).enumerate().for_each(|(index, output)| {
            let first = index * (ROWS / 4) * self.outputs;
            vectorized(
                #[inline(always)]
                || {
                    for output in output.chunks_exact_mut(self.outputs) {
                        output.copy_from_slice(bias);
                    }
                    for partial in partials.chunks_exact(len) {
                        for (output, value) in output.iter_mut().zip(&partial[first..]) {
                            *output += value;
                        }
                    }
                    if relu {
                        for output in output {
                            *output = relu_of(*output);
                        }
                    }
                },
            );
        });
    }

    /// Rows of the kernel per block of the backward pass.
    pub(crate) fn block_rows(&self) -> usize {
        (BLOCK_VALUES / self.outputs.max(1)).clamp(1, self.inputs.max(1))
    }

    /// Input gradient `[batch, rows]` of a block of kernel rows, given the transposed output
    /// gradient `[outputs, batch]`.
    pub(crate) fn input_gradient_block(
        &self,
        kernel: &[f32],
        d_output_t: &[f32],
        block: &mut [f32],
    ) {
        with_scratch([block.len()], |[block_t]| {
            let gemm = Gemm {
                m: kernel.len() / self.outputs,
                n: self.batch,
                k_outer: 1,
                k_inner: self.outputs,
                a_rows: RowStrides::uniform(self.outputs),
                a: KStrides::uniform(1),
                b: KStrides::uniform(self.batch),
                c_row: self.batch,
                init: Init::Zero,
            };
            gemm.run(kernel, d_output_t, block_t);
            transpose(block_t, self.batch, block);
        });
    }

    /// Gathers the gradient `[inputs]` of one image from the blocks `[block][batch, rows]`.
    pub(crate) fn gather_input_gradient(&self, blocks: &[f32], image: usize, d_input: &mut [f32]) {
        let rows = self.block_rows();
        for (block, d_input) in blocks.chunks(rows * self.batch).zip(d_input.chunks_mut(rows)) {
            d_input.copy_from_slice(&block[image * d_input.len()..][..d_input.len()]);
        }
    }

    /// Kernel gradient of a block of rows. `input` starts at the block's first input, and its rows
    /// are `input_row` values apart.
    pub(crate) fn kernel_gradient_block(
        &self,
        input: &[f32],
        input_row: usize,
        d_output: &[f32],
        d_kernel: &mut [f32],
    ) {
        let gemm = Gemm {
            m: d_kernel.len() / self.outputs,
            n: self.outputs,
            k_outer: 1,
            k_inner: self.batch,
            a_rows: RowStrides::uniform(1),
            a: KStrides::uniform(input_row),
            b: KStrides::uniform(self.outputs),
            c_row: self.outputs,
            init: Init::Zero,
        };
        gemm.run(input, d_output, d_kernel);
    }
}
