//! The nodes of a network with branches.

use crate::layer::Layer;

/// A layer of a [`GraphProgram`](crate::GraphProgram), and what it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Node<P = (usize, usize)> {
    /// The layer.
    pub layer: Layer<P>,
    /// What it reads: 0 is the input of the network, `n + 1` the output of the `n`-th node.
    pub inputs: Vec<usize>,
}
