//! The compiled step, the counterpart of `@jax.jit`.

use rayon::prelude::*;

use crate::activation::{log_softmax_backward_row, log_softmax_row};
use crate::buffer::{Buffer, LINE_VALUES, with_scratch};
use crate::chain::Chain;
use crate::error::{KernelError, Result, check_len};
use crate::layer::Layer;
use crate::parameters::{Parameters, check_moments, check_params};
use crate::plan::Plan;
use crate::purpose::Purpose;
use crate::stage::{ConvStage, DenseStage};
use crate::sums::MAX_PARTIALS;
use crate::threads::in_pool;
use crate::update_rule::UpdateRule;

/// Loss and correct predictions of a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean cross-entropy over the images, −ln p\[label\], in nats.
    pub loss: f32,
    /// Number of images whose most probable class is the label.
    pub correct: u32,
}

/// A network compiled for a batch size. [`Self::new`] plans it and allocates all buffers; every
/// later call replays the plan.
#[derive(Debug)]
pub struct Program {
    batch: usize,
    image_len: usize,
    classes: usize,
    param_lens: Vec<usize>,
    convs: Vec<ConvStage>,
    denses: Vec<DenseStage>,
    /// Per image: the padded input of every convolution, then the input of the first dense layer.
    activations: Buffer,
    activations_len: usize,
    features_offset: usize,
    features_len: usize,
    /// Per image: the pooling masks, for the backward pass.
    masks: Vec<u32>,
    masks_len: usize,
    /// Per group of images: the gradients of all convolutions.
    group_grads: Buffer,
    grads_len: usize,
    /// Number of values in the gradients of all packed weights.
    packed_grads_len: usize,
    log_probs: Buffer,
    /// The number of images whose activations are kept for the backward pass.
    kept: usize,
}

impl Program {
    /// Compiles a chain of layers for images `[batch, height, width, channels]`.
    ///
    /// Supported are `(Conv [Relu] [AvgPool | MaxPool])* Flatten (Dense [Relu])+ LogSoftmax`.
    ///
    /// # Errors
    /// [`KernelError::Chain`] if the chain is not supported or its sizes do not fit; the message
    /// names the layer.
    pub fn new(input_shape: [usize; 4], layers: &[Layer]) -> Result<Self> {
        let chain = Chain::new(input_shape, layers)?;
        let plan = Plan::new(&chain);
        let [batch, height, width, channels] = input_shape;
        let features_len = chain.denses.first().map_or(0, |stage| stage.dense.inputs);
        let classes = chain.denses.last().map_or(0, |stage| stage.dense.outputs);
        let activations_len = (plan.padded_len + features_len).next_multiple_of(LINE_VALUES);
        let masks_len = plan.masks_len.next_multiple_of(LINE_VALUES).max(LINE_VALUES);
        Ok(Self {
            batch,
            image_len: height * width * channels,
            classes,
            param_lens: chain.param_lens,
            convs: plan.convs,
            denses: plan.denses,
            activations: Buffer::zeroed(batch * activations_len),
            activations_len,
            features_offset: plan.padded_len,
            features_len,
            masks: vec![0; batch * masks_len],
            masks_len,
            group_grads: Buffer::zeroed(batch.min(MAX_PARTIALS) * plan.grads_len),
            grads_len: plan.grads_len,
            packed_grads_len: plan.packed_grads_len,
            log_probs: Buffer::zeroed(batch * classes),
            kept: 0,
        })
    }

    /// The batch size of the plan, the most images that a step takes.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// One training step by a rule. Returns the result before the update.
    ///
    /// `moments` has the first moment of every parameter, then the second of every parameter, if
    /// the rule has two. All start at zero.
    ///
    /// `images` is `[n, height, width, channels]` and `labels` `[n]`, with 1 ≤ n ≤ [`Self::batch`].
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan; [`KernelError::BatchSize`] for no
    /// images or too many; [`KernelError::Label`] for an out-of-range label. Nothing has been
    /// changed then.
    pub fn train_step(
        &mut self,
        params: &mut [&mut [f32]],
        moments: &mut [&mut [f32]],
        images: &[f32],
        labels: &[u32],
        rule: UpdateRule,
    ) -> Result<StepResult> {
        check_params(&self.param_lens, params)?;
        check_moments(&self.param_lens, moments, rule.moments())?;
        self.check_batch(images, labels)?;
        Ok(in_pool(|| {
            self.transform_weights(Purpose::Training, params);
            self.forward_batch(params, images);
            let (loss, correct) = self.loss_and_correct(labels);
            self.softmax_xent_backward(labels);
            let mut parameters = Parameters { params, moments, rule: Some(rule) };
            self.backward_layers(&mut parameters, labels.len());
            StepResult { loss: (loss / labels.len() as f64) as f32, correct }
        }))
    }

    /// Log-probabilities `[n, classes]` of a batch, with 1 ≤ n ≤ [`Self::batch`]; keeps what
    /// [`Self::backward_and_update`] needs.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan; [`KernelError::BatchSize`] for no
    /// images or too many.
    pub fn forward(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        log_probs: &mut [f32],
    ) -> Result<()> {
        check_params(&self.param_lens, params)?;
        let found = images.len() / self.image_len.max(1);
        if found == 0 || found > self.batch {
            return Err(KernelError::BatchSize { planned: self.batch, found });
        }
        check_len("images", found * self.image_len, images.len())?;
        check_len("log-probabilities", found * self.classes, log_probs.len())?;
        in_pool(|| {
            self.transform_weights(Purpose::Training, params);
            self.forward_batch(params, images);
        });
        log_probs.copy_from_slice(&self.log_probs[..log_probs.len()]);
        self.kept = found;
        Ok(())
    }

    /// Backpropagates the gradient of any loss with respect to the log-probabilities of the latest
    /// [`Self::forward`], and updates the parameters, which must be the same as there.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan, that batch or the rule. Nothing
    /// has been changed then.
    pub fn backward_and_update(
        &mut self,
        params: &mut [&mut [f32]],
        moments: &mut [&mut [f32]],
        rule: UpdateRule,
        d_log_probs: &[f32],
    ) -> Result<()> {
        check_moments(&self.param_lens, moments, rule.moments())?;
        self.backward(d_log_probs, Parameters { params, moments, rule: Some(rule) })
    }

    /// The same without an update: stores the gradients of the parameters.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan or that batch. Nothing has been
    /// changed then.
    pub fn gradients(
        &mut self,
        params: &mut [&mut [f32]],
        gradients: &mut [&mut [f32]],
        d_log_probs: &[f32],
    ) -> Result<()> {
        check_moments(&self.param_lens, gradients, 1)?;
        self.backward(d_log_probs, Parameters { params, moments: gradients, rule: None })
    }

    fn backward(&mut self, d_log_probs: &[f32], mut parameters: Parameters) -> Result<()> {
        check_params(&self.param_lens, parameters.params)?;
        let kept = self.kept;
        check_len("gradient of the log-probabilities", kept * self.classes, d_log_probs.len())?;
        if kept > 0 {
            in_pool(|| {
                self.log_softmax_backward(d_log_probs);
                self.backward_layers(&mut parameters, kept);
            });
        }
        Ok(())
    }

    /// Loss and correct predictions of any number of images, evaluated batch by batch.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan; [`KernelError::BatchSize`] for no
    /// images; [`KernelError::Label`] for an out-of-range label.
    pub fn evaluate(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        labels: &[u32],
    ) -> Result<StepResult> {
        check_params(&self.param_lens, params)?;
        check_len("images", labels.len() * self.image_len, images.len())?;
        self.check_labels(labels)?;
        if labels.is_empty() {
            return Err(KernelError::BatchSize { planned: self.batch, found: 0 });
        }
        let batches = images.chunks(self.batch * self.image_len).zip(labels.chunks(self.batch));
        let (loss, correct) = in_pool(|| {
            self.transform_weights(Purpose::Inference, params);
            batches.fold((0.0, 0), |(loss, correct), (images, labels)| {
                self.infer_batch(params, images);
                let (batch_loss, batch_correct) = self.loss_and_correct(labels);
                (loss + batch_loss, correct + batch_correct)
            })
        });
        Ok(StepResult { loss: (loss / labels.len() as f64) as f32, correct })
    }

    /// Log-probabilities `[n, classes]` of any number of images, evaluated batch by batch.
    ///
    /// # Errors
    /// [`KernelError::Length`] if a slice does not fit the plan.
    pub fn log_probabilities(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        log_probs: &mut [f32],
    ) -> Result<()> {
        check_params(&self.param_lens, params)?;
        check_len("images", images.len() / self.image_len * self.image_len, images.len())?;
        let expected = images.len() / self.image_len * self.classes;
        check_len("log-probabilities", expected, log_probs.len())?;
        let outputs = log_probs.chunks_mut(self.batch * self.classes);
        let batches = images.chunks(self.batch * self.image_len).zip(outputs);
        in_pool(|| {
            self.transform_weights(Purpose::Inference, params);
            for (images, log_probs) in batches {
                self.infer_batch(params, images);
                log_probs.copy_from_slice(&self.log_probs[..log_probs.len()]);
            }
        });
        Ok(())
    }

    fn check_batch(&self, images: &[f32], labels: &[u32]) -> Result<()> {
        if labels.is_empty() || labels.len() > self.batch {
            return Err(KernelError::BatchSize { planned: self.batch, found: labels.len() });
        }
        check_len("images", labels.len() * self.image_len, images.len())?;
        self.check_labels(labels)
    }

    fn check_labels(&self, labels: &[u32]) -> Result<()> {
        let classes = self.classes;
        match labels.iter().position(|&label| label as usize >= classes) {
            Some(image) => Err(KernelError::Label { label: labels[image], image, classes }),
            None => Ok(()),
        }
    }

    fn transform_weights(&mut self, purpose: Purpose, params: &[impl AsRef<[f32]>]) {
        for stage in &mut self.convs {
            stage.transform_weights(purpose, params[stage.params.0].as_ref());
        }
    }

    /// Computes log-probabilities: convolutions image by image, then dense layers for the batch.
    fn forward_batch(&mut self, params: &[impl AsRef<[f32]> + Sync], images: &[f32]) {
        self.kept = 0;
        self.forward_convs(params, images);
        let batch = images.len() / self.image_len;
        let features = &self.activations[self.features_offset..];
        let Self { denses, log_probs, activations_len, .. } = self;
        let log_probs = &mut log_probs[..batch * self.classes];
        forward_denses(Purpose::Training, denses, params, features, *activations_len, log_probs);
    }

    /// The same without what the backward pass needs. The log-probabilities of an image do not
    /// depend on the other images, nor on their number.
    fn infer_batch(&mut self, params: &[impl AsRef<[f32]> + Sync], images: &[f32]) {
        self.kept = 0;
        let batch = images.len() / self.image_len;
        let features_len = self.features_len;
        let has_convs = !self.convs.is_empty();
        let scratch_len = if has_convs { batch * features_len } else { 0 };
        with_scratch([scratch_len], |[features]| {
            self.infer_convs(params, images, features);
            let features = if has_convs { features } else { images };
            let log_probs = &mut self.log_probs[..batch * self.classes];
            let denses = &mut self.denses;
            forward_denses(Purpose::Inference, denses, params, features, features_len, log_probs);
        });
    }

    /// Computes the features of every image, if there are convolutions. Their padded inputs are
    /// scratch of a thread, which stays in its cache from image to image.
    fn infer_convs(
        &self,
        params: &[impl AsRef<[f32]> + Sync],
        images: &[f32],
        features: &mut [f32],
    ) {
        let Some((last, others)) = self.convs.split_last() else {
            return;
        };
        let block_lens = self.convs.iter().map(|stage| stage.block_len(Purpose::Inference));
        let lens = [self.features_offset, block_lens.max().unwrap_or(0)];
        let features = features.par_chunks_exact_mut(self.features_len);
        images.par_chunks_exact(self.image_len).zip(features).for_each(|(image, features)| {
            with_scratch(lens, |[padded, block]| {
                for stage in &self.convs {
                    stage.conv.clear_border(&mut padded[stage.input..]);
                }
                let first = &self.convs[0].conv;
                first.pad(image, first.low_padding(), padded);
                let bias = |stage: &ConvStage| params[stage.params.1].as_ref();
                for stage in others {
                    stage.infer(bias(stage), padded, None, block);
                }
                last.infer(bias(last), padded, Some(features), block);
            });
        });
    }

    fn forward_convs(&mut self, params: &[impl AsRef<[f32]> + Sync], images: &[f32]) {
        let block_len =
            self.convs.iter().map(|stage| stage.block_len(Purpose::Training)).max().unwrap_or(0);
        let features = self.features_offset..self.features_offset + self.features_len;
        let convs = &self.convs;
        images
            .par_chunks_exact(self.image_len)
            .zip(self.activations.par_chunks_exact_mut(self.activations_len))
            .zip(self.masks.par_chunks_exact_mut(self.masks_len))
            .for_each(|((image, activations), masks)| match convs.first() {
                Some(first) => with_scratch([block_len], |[block]| {
                    first.conv.pad(image, first.conv.low_padding(), activations);
                    for stage in convs {
                        let bias = params[stage.params.1].as_ref();
                        stage.forward(bias, activations, masks, block);
                    }
                }),
                None => activations[features.clone()].copy_from_slice(image),
            });
    }

    /// Summed loss and number of correct predictions of the last forward pass.
    fn loss_and_correct(&self, labels: &[u32]) -> (f64, u32) {
        let rows = self.log_probs.chunks_exact(self.classes).zip(labels);
        rows.fold((0.0, 0), |(loss, correct), (log_probs, &label)| {
            let log_prob = log_probs[label as usize];
            let is_correct = argmax(log_probs) == label as usize;
            (loss - f64::from(log_prob), correct + u32::from(is_correct))
        })
    }

    /// Gradient of the mean cross-entropy with respect to the logits, (p − onehot) / n,
    /// backpropagated through the ReLU of the last layer, if any.
    fn softmax_xent_backward(&mut self, labels: &[u32]) {
        let Some(last) = self.denses.last_mut() else {
            return;
        };
        let inv_n = 1.0 / labels.len() as f32;
        let rows = last.d_output.chunks_exact_mut(self.classes);
        for ((d_logits, log_probs), &label) in
            rows.zip(self.log_probs.chunks_exact(self.classes)).zip(labels)
        {
            for (d_logit, log_prob) in d_logits.iter_mut().zip(log_probs) {
                *d_logit = log_prob.exp() * inv_n;
            }
            d_logits[label as usize] -= inv_n;
        }
        last.relu_backward_in_place(labels.len());
    }

    /// Gradient of the logits, given that of the log-probabilities, backpropagated through the ReLU
    /// of the last layer, if any.
    fn log_softmax_backward(&mut self, d_log_probs: &[f32]) {
        let Some(last) = self.denses.last_mut() else {
            return;
        };
        let rows = self.log_probs.chunks_exact(self.classes);
        let rows = rows.zip(d_log_probs.chunks_exact(self.classes));
        for (d_logits, (log_probs, d_log_probs)) in
            last.d_output.chunks_exact_mut(self.classes).zip(rows)
        {
            log_softmax_backward_row(log_probs, d_log_probs, d_logits);
        }
        last.relu_backward_in_place(d_log_probs.len() / self.classes);
    }

    fn backward_layers(&mut self, parameters: &mut Parameters, batch: usize) {
        self.backward_denses(parameters, batch);
        self.backward_convs(parameters, batch);
    }

    fn backward_denses(&mut self, parameters: &mut Parameters, batch: usize) {
        for index in (0..self.denses.len()).rev() {
            let (previous, stage) = self.denses.split_at_mut(index);
            match previous.last_mut() {
                Some(previous) => {
                    stage[0].backward(batch, &previous.output, previous.dense.outputs, parameters);
                    previous.backprop_from(batch, &stage[0]);
                }
                None => {
                    let features = &self.activations[self.features_offset..];
                    stage[0].backward(batch, features, self.activations_len, parameters);
                }
            }
        }
    }

    /// Backpropagates each image through all convolutions while it is in the cache. Groups of
    /// images run in parallel, and each sums its own gradients. The groups depend only on the batch
    /// size, and their sums are added in order.
    fn backward_convs(&mut self, parameters: &mut Parameters, batch: usize) {
        let (Some(dense), false) = (self.denses.first(), self.convs.is_empty()) else {
            return;
        };
        let outputs = self.convs.iter().map(ConvStage::output_len);
        let inputs = self.convs.iter().skip(1).map(|stage| stage.conv.input_len());
        let gradient_len = outputs.chain(inputs).max().unwrap_or(0);
        let d_output_len = self.convs.iter().map(ConvStage::d_output_len).max().unwrap_or(0);
        let group_size = batch.div_ceil(MAX_PARTIALS);
        let groups = batch.div_ceil(group_size);
        let group_grads = &mut self.group_grads[..groups * self.grads_len];
        group_grads.par_chunks_exact_mut(self.grads_len).enumerate().for_each(|(index, grads)| {
            grads.fill(0.0);
            let lens = [gradient_len, d_output_len, self.packed_grads_len];
            with_scratch(lens, |[gradient, d_output, packed_grads]| {
                packed_grads.fill(0.0);
                for image in index * group_size..batch.min((index + 1) * group_size) {
                    let activations = &self.activations[image * self.activations_len..];
                    let masks = &self.masks[image * self.masks_len..];
                    dense.input_gradient(batch, image, &mut gradient[..self.features_len]);
                    for stage in self.convs.iter().rev() {
                        stage.backward(activations, masks, gradient, d_output, packed_grads, grads);
                    }
                }
                for stage in &self.convs {
                    stage.inverse_transform_grad(packed_grads, grads);
                }
            });
        });

        for stage in &self.convs {
            let (kernel, bias) = stage.params;
            let end = parameters.update_by_sum(kernel, group_grads, self.grads_len, stage.grads);
            parameters.update_by_sum(bias, group_grads, self.grads_len, end);
        }
    }
}

/// Computes log-probabilities `[batch, classes]` from features whose rows are `row` values apart.
fn forward_denses(
    purpose: Purpose,
    denses: &mut [DenseStage],
    params: &[impl AsRef<[f32]>],
    features: &[f32],
    row: usize,
    log_probs: &mut [f32],
) {
    let classes = denses.last().map_or(0, |stage| stage.dense.outputs);
    let batch = log_probs.len() / classes;
    let (mut input, mut input_row) = (features, row);
    for stage in denses {
        let (kernel, bias) = (&params[stage.params.0], &params[stage.params.1]);
        stage.forward(purpose, batch, input, input_row, kernel.as_ref(), bias.as_ref());
        (input, input_row) = (&stage.output, stage.dense.outputs);
    }
    let rows = input.chunks_exact(classes).zip(log_probs.chunks_exact_mut(classes));
    rows.for_each(|(logits, log_probs)| log_softmax_row(logits, log_probs));
}

/// Index of the first maximum.
fn argmax(values: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = index;
        }
    }
    best
}
