//! Forward passes for training and for inference.

/// What a forward pass is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A backward pass may follow. Small rounding errors matter more than speed.
    Training,
    /// The output alone. It does not depend on the other images of a batch, bit for bit.
    Inference,
}
