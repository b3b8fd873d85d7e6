//! The compiled step of any network: layer by layer through a graph.

mod epilogue;
mod head;
mod layer_norm;
mod mode;
mod norm;
mod plan;
mod stage;

pub use layer_norm::LAYER_NORM_EPSILON;
pub use mode::Mode;

use crate::batch_norm::Statistics;
use crate::buffer::Buffer;
use crate::error::{KernelError, Result, check_len};
use crate::node::Node;
use crate::parameters::{Parameters, check_moments, check_params};
use crate::sums::MAX_PARTIALS;
use crate::threads::in_pool;
use crate::update_rule::UpdateRule;

use plan::Plan;
use stage::{Gradient, Stage, Workspace};

/// Checks that [`GraphProgram::new`] would accept the nodes.
///
/// # Errors
/// Those of [`GraphProgram::new`].
pub fn check_graph(input_shape: &[usize], nodes: &[Node]) -> Result<()> {
    Plan::new(input_shape, nodes).map(drop)
}

/// A network compiled for a batch size, with branches, batch norm and dropout. [`Self::new`] plans
/// it; the first training step allocates all buffers, and every later one replays the plan.
///
/// A plain chain is faster as a [`Program`](crate::Program), which takes each image through all
/// convolutions while it is in the cache. A batch norm needs the whole batch, so here each stage
/// treats all examples before the next begins.
#[derive(Debug)]
pub struct GraphProgram {
    batch: usize,
    stages: Vec<Stage>,
    param_lens: Vec<usize>,
    norms: Vec<usize>,
    /// The input, and the output of each stage.
    arrays: Vec<Buffer>,
    /// The array of the network's output.
    output: usize,
    gradients: Vec<Gradient>,
    workspace: Workspace,
    /// Whether the latest forward pass has kept what the backward pass needs.
    is_kept: bool,
}

impl GraphProgram {
    /// Compiles a network for inputs of a shape, batch first. The output of the last node is that
    /// of the network.
    ///
    /// # Errors
    /// [`KernelError::Chain`] if a node is not supported or its sizes do not fit, or nothing uses
    /// its output; the message names the node.
    pub fn new(input_shape: &[usize], nodes: &[Node]) -> Result<Self> {
        let plan = Plan::new(input_shape, nodes)?;
        let batch = input_shape[0];
        Ok(Self {
            batch,
            output: plan.output,
            arrays: plan.array_lens.iter().map(|len| Buffer::zeroed(batch * len)).collect(),
            stages: plan.stages,
            param_lens: plan.param_lens,
            norms: plan.norms,
            gradients: Vec::new(),
            workspace: Workspace::default(),
            is_kept: false,
        })
    }

    /// The output of the network for a batch.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan.
    pub fn forward(
        &mut self,
        params: &[&[f32]],
        mode: Mode,
        input: &[f32],
        output: &mut [f32],
    ) -> Result<()> {
        check_params(&self.param_lens, params)?;
        check_len("input", self.arrays[0].len(), input.len())?;
        check_len("output", self.arrays[self.output].len(), output.len())?;
        if let Mode::Evaluate { running } = mode {
            check_len("running statistics", self.norms.len(), running.len())?;
            for (&channels, statistics) in self.norms.iter().zip(running) {
                check_len("running mean", channels, statistics.mean.len())?;
                check_len("running variance", channels, statistics.var.len())?;
            }
        }
        self.arrays[0].copy_from_slice(input);
        in_pool(|| {
            for stage in &mut self.stages {
                let mut output = std::mem::take(&mut self.arrays[stage.output]);
                stage.forward(self.batch, params, mode, &self.arrays, &mut output);
                self.arrays[stage.output] = output;
            }
        });
        output.copy_from_slice(&self.arrays[self.output]);
        self.is_kept = matches!(mode, Mode::Train { .. });
        Ok(())
    }

    /// The statistics of the latest batch for each batch norm, in the order of the nodes.
    pub fn statistics(&self) -> Vec<&Statistics> {
        let norms = self.stages.iter().filter_map(|stage| stage.epilogue.norm.as_ref());
        let mut norms = norms.collect::<Vec<_>>();
        norms.sort_by_key(|norm| norm.index);
        norms.into_iter().map(|norm| &norm.statistics).collect()
    }

    /// Backpropagates the gradient of any loss with respect to the output of the latest
    /// [`Self::forward`] in training, and updates the parameters, which must be the same as there.
    ///
    /// `moments` has the first moment of every parameter, then the second of every parameter, if
    /// the rule has two. All start at zero.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan or the rule;
    /// [`KernelError::NothingKept`] if the latest forward pass was not one of training. Nothing has
    /// been changed then.
    pub fn backward_and_update(
        &mut self,
        params: &mut [&mut [f32]],
        moments: &mut [&mut [f32]],
        rule: UpdateRule,
        d_output: &[f32],
    ) -> Result<()> {
        check_moments(&self.param_lens, moments, rule.moments())?;
        self.backward(d_output, Parameters { params, moments, rule: Some(rule) })
    }

    /// The same without an update: stores the gradients of the parameters.
    ///
    /// # Errors
    /// Those of [`Self::backward_and_update`].
    pub fn gradients(
        &mut self,
        params: &mut [&mut [f32]],
        gradients: &mut [&mut [f32]],
        d_output: &[f32],
    ) -> Result<()> {
        check_moments(&self.param_lens, gradients, 1)?;
        self.backward(d_output, Parameters { params, moments: gradients, rule: None })
    }

    fn backward(&mut self, d_output: &[f32], mut parameters: Parameters) -> Result<()> {
        check_params(&self.param_lens, parameters.params)?;
        check_len("output gradient", self.arrays[self.output].len(), d_output.len())?;
        if !self.is_kept {
            return Err(KernelError::NothingKept);
        }
        self.reserve();
        self.gradients.iter_mut().for_each(|gradient| gradient.is_set = false);
        self.gradients[self.output].values.copy_from_slice(d_output);
        in_pool(|| {
            for stage in self.stages.iter_mut().rev().filter(|stage| stage.is_trained()) {
                let mut d_output = std::mem::take(&mut self.gradients[stage.output].values);
                stage.backward(
                    self.batch,
                    &self.arrays,
                    &mut d_output,
                    &mut self.gradients,
                    &mut self.workspace,
                    &mut parameters,
                );
                self.gradients[stage.output].values = d_output;
            }
        });
        Ok(())
    }

    /// Allocates what the backward pass needs.
    fn reserve(&mut self) {
        if !self.gradients.is_empty() {
            return;
        }
        let gradient =
            |array: &Buffer| Gradient { values: Buffer::zeroed(array.len()), is_set: false };
        self.gradients = self.arrays.iter().map(gradient).collect();
        let heads = self.stages.iter().map(|stage| self.batch * stage.shape.head);
        let grads = self.stages.iter().map(|stage| stage.head.grads_len());
        let groups = self.batch.min(MAX_PARTIALS);
        self.workspace = Workspace {
            unpooled: Buffer::zeroed(heads.max().unwrap_or(0)),
            groups: Buffer::zeroed(groups * grads.max().unwrap_or(0)),
        };
    }
}
