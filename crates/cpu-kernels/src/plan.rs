//! Lays out the memory of a chain of layers.

use crate::buffer::{Buffer, LINE_VALUES};
use crate::chain::{Chain, FusedConv};
use crate::purpose::Purpose;
use crate::stage::{ConvStage, DenseStage, OutputView};

/// The stages of a chain and its buffer sizes.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) convs: Vec<ConvStage>,
    pub(crate) denses: Vec<DenseStage>,
    /// Number of values in the padded inputs of an image, which precede its features.
    pub(crate) padded_len: usize,
    /// Number of pooling masks of an image.
    pub(crate) masks_len: usize,
    /// Number of values in the gradients of all convolutions.
    pub(crate) grads_len: usize,
    /// Number of values in the gradients of all packed weights.
    pub(crate) packed_grads_len: usize,
}

impl Plan {
    pub(crate) fn new(chain: &Chain) -> Self {
        let mut plan = Self::default();
        for conv in &chain.convs {
            plan.conv(*conv);
        }
        plan.link_outputs();
        for dense in &chain.denses {
            let needs_input_gradient = !plan.convs.is_empty() || !plan.denses.is_empty();
            plan.denses.push(DenseStage::new(*dense, needs_input_gradient));
        }
        plan
    }

    fn conv(&mut self, FusedConv { conv, pooling, params }: FusedConv) {
        let is_first = self.convs.is_empty();
        let packed_len = conv.packed_len(Purpose::Training);
        let rotated_len =
            if is_first { 0 } else { conv.transposed_conv().packed_len(Purpose::Training) };
        self.convs.push(ConvStage {
            conv,
            pooling,
            params,
            input: self.padded_len,
            output: OutputView { offset: 0, row_stride: 0 },
            masks: self.masks_len,
            grads: self.grads_len,
            packed_grad: self.packed_grads_len,
            packed_weights: Buffer::zeroed(packed_len.max(conv.packed_len(Purpose::Inference))),
            rotated_weights: Buffer::zeroed(rotated_len),
        });
        self.padded_len += conv.padded_len().next_multiple_of(LINE_VALUES);
        self.masks_len += pooling.pool.output_len();
        self.grads_len += (conv.kernel_len() + conv.out_channels).next_multiple_of(LINE_VALUES);
        self.packed_grads_len += packed_len.next_multiple_of(LINE_VALUES);
    }

    /// Makes each convolution write directly into the padded input of the next, and the last one
    /// into the features.
    fn link_outputs(&mut self) {
        for index in 0..self.convs.len() {
            let output = match self.convs.get(index + 1) {
                Some(next) => OutputView {
                    offset: next.input + next.conv.origin(next.conv.low_padding()),
                    row_stride: next.conv.padded_row(),
                },
                None => {
                    let pool = &self.convs[index].pooling.pool;
                    OutputView {
                        offset: self.padded_len,
                        row_stride: pool.windows().1 * pool.channels,
                    }
                }
            };
            self.convs[index].output = output;
        }
    }
}
