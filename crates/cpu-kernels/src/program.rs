//! The compiled step: what a tutorial in Python gets from `@jit`.

use rayon::prelude::*;

use crate::activation::log_softmax_row;
use crate::buffer::{Buffer, LINE_VALUES, with_scratch};
use crate::error::{KernelError, Result, check_len};
use crate::layer::Layer;
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::stage::{ConvStage, DenseStage};
use crate::sums::{MAX_PARTIALS, add};

/// What a batch gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepResult {
    /// Mean of −ln p\[label\] over the images, in nats.
    pub loss: f32,
    /// Images whose most probable class is the label.
    pub correct: u32,
}

/// Gradient values that are summed over the groups at once.
const SUM_BLOCK: usize = 1024;

/// A network planned for a batch size: every buffer is allocated here, once, and every call replays
/// the plan.
#[derive(Debug)]
pub struct Program {
    batch: usize,
    image_len: usize,
    classes: usize,
    param_lens: Vec<usize>,
    convs: Vec<ConvStage>,
    denses: Vec<DenseStage>,
    /// Per image: the padded input of every convolution, then the features of the first dense
    /// layer.
    activations: Buffer,
    activations_len: usize,
    features: usize,
    features_len: usize,
    /// Per image: what the backward pass must know about every pooling window.
    marks: Vec<u32>,
    marks_len: usize,
    /// Per group of images: the gradients of all convolutions.
    partials: Buffer,
    partial_len: usize,
    /// Values that the sums of a group take on the way to its partial gradient.
    sums_len: usize,
    log_probs: Buffer,
}

impl Program {
    /// Plans a chain of layers for images `[batch, height, width, channels]`.
    ///
    /// Known chains are `(Conv [Relu] [AvgPool | MaxPool])* Flatten (Dense [Relu])+ LogSoftmax`.
    ///
    /// # Errors
    ///
    /// If the chain is none of these, or its sizes do not fit together: the message names the
    /// layer.
    pub fn new(input_shape: [usize; 4], layers: &[Layer]) -> Result<Self> {
        let plan = Plan::new(input_shape, layers)?;
        let [batch, height, width, channels] = input_shape;
        let activations_len = (plan.padded_len + plan.features).next_multiple_of(LINE_VALUES);
        let classes = plan.denses.last().map_or(0, |stage| stage.dense.outputs);
        let marks_len = plan.marks_len.next_multiple_of(LINE_VALUES).max(LINE_VALUES);
        Ok(Self {
            batch,
            image_len: height * width * channels,
            classes,
            param_lens: plan.param_lens,
            convs: plan.convs,
            denses: plan.denses,
            activations: Buffer::zeroed(batch * activations_len),
            activations_len,
            features: plan.padded_len,
            features_len: plan.features,
            marks: vec![0; batch * marks_len],
            marks_len,
            partials: Buffer::zeroed(batch.min(MAX_PARTIALS) * plan.gradient_len),
            partial_len: plan.gradient_len,
            sums_len: plan.sums_len,
            log_probs: Buffer::zeroed(batch * classes),
        })
    }

    /// The most images that one step takes.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// One step of gradient descent with momentum on a batch of images `[n, height, width,
    /// channels]`, n at most the planned batch size: m ← βm + g; p ← p − learning_rate·m.
    ///
    /// Loss and correct images are those before the update.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the plan or a label names no class; nothing has been changed then.
    pub fn train_step(
        &mut self,
        params: &mut [&mut [f32]],
        momenta: &mut [&mut [f32]],
        images: &[f32],
        labels: &[u32],
        learning_rate: f32,
        beta: f32,
    ) -> Result<StepResult> {
        self.check_params("parameters", params.iter().map(|param| param.len()))?;
        self.check_params("momenta", momenta.iter().map(|momentum| momentum.len()))?;
        self.check_batch(images, labels)?;
        let parameters = Parameters::Momentum { params, momenta, learning_rate, beta };
        Ok(self.step(parameters, images, labels))
    }

    /// Loss of a batch and its gradient with respect to every parameter, written to `gradients`.
    ///
    /// # Errors
    ///
    /// As [`Self::train_step`].
    pub fn value_and_grad(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        labels: &[u32],
        gradients: &mut [&mut [f32]],
    ) -> Result<StepResult> {
        self.check_params("parameters", params.iter().map(|param| param.len()))?;
        self.check_params("gradients", gradients.iter().map(|gradient| gradient.len()))?;
        self.check_batch(images, labels)?;
        Ok(self.step(Parameters::Gradient { params, gradients }, images, labels))
    }

    /// Loss and correct images of any number of images, taken batch by batch.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the plan, there is no image, or a label names no class.
    pub fn evaluate(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        labels: &[u32],
    ) -> Result<StepResult> {
        self.check_params("parameters", params.iter().map(|param| param.len()))?;
        check_len("images", labels.len() * self.image_len, images.len())?;
        self.check_labels(labels)?;
        if labels.is_empty() {
            return Err(KernelError::BatchSize { planned: self.batch, found: 0 });
        }
        let parameters = Parameters::Gradient { params, gradients: &mut [] };
        let batches = images.chunks(self.batch * self.image_len).zip(labels.chunks(self.batch));
        let (loss, correct) = in_pool(|| {
            self.load_kernels(&parameters);
            batches.fold((0.0, 0), |(loss, correct), (images, labels)| {
                self.forward_batch(&parameters, images);
                let (batch_loss, batch_correct) = self.score(labels);
                (loss + batch_loss, correct + batch_correct)
            })
        });
        Ok(StepResult { loss: (loss / labels.len() as f64) as f32, correct })
    }

    /// Log-probabilities `[n, classes]` of any number of images, taken batch by batch.
    ///
    /// # Errors
    ///
    /// If a slice does not fit the plan.
    pub fn log_probabilities(
        &mut self,
        params: &[&[f32]],
        images: &[f32],
        log_probs: &mut [f32],
    ) -> Result<()> {
        self.check_params("parameters", params.iter().map(|param| param.len()))?;
        check_len("images", images.len() / self.image_len * self.image_len, images.len())?;
        let expected = images.len() / self.image_len * self.classes;
        check_len("log-probabilities", expected, log_probs.len())?;
        let parameters = Parameters::Gradient { params, gradients: &mut [] };
        let outputs = log_probs.chunks_mut(self.batch * self.classes);
        let batches = images.chunks(self.batch * self.image_len).zip(outputs);
        in_pool(|| {
            self.load_kernels(&parameters);
            for (images, log_probs) in batches {
                self.forward_batch(&parameters, images);
                log_probs.copy_from_slice(&self.log_probs[..log_probs.len()]);
            }
        });
        Ok(())
    }

    fn check_params(
        &self,
        what: &'static str,
        found: impl ExactSizeIterator<Item = usize>,
    ) -> Result<()> {
        check_len(what, self.param_lens.len(), found.len())?;
        self.param_lens.iter().zip(found).try_for_each(|(&len, found)| check_len(what, len, found))
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

    fn step(&mut self, mut parameters: Parameters, images: &[f32], labels: &[u32]) -> StepResult {
        in_pool(|| {
            self.load_kernels(&parameters);
            self.forward_batch(&parameters, images);
            let (loss, correct) = self.score(labels);
            self.start_backward(labels);
            self.backward_denses(&mut parameters, labels.len());
            self.backward_convs(&mut parameters, labels.len());
            StepResult { loss: (loss / labels.len() as f64) as f32, correct }
        })
    }

    fn load_kernels(&mut self, parameters: &Parameters) {
        for stage in &mut self.convs {
            stage.load_kernel(parameters.get(stage.params.0));
        }
    }

    /// Images to log-probabilities: image by image through the convolutions, then together through
    /// the dense layers.
    fn forward_batch(&mut self, parameters: &Parameters, images: &[f32]) {
        let batch = images.len() / self.image_len;
        self.forward_convs(parameters, images);
        let mut input = &self.activations[self.features..];
        let mut input_row = self.activations_len;
        for stage in &mut self.denses {
            let (kernel, bias) = (parameters.get(stage.params.0), parameters.get(stage.params.1));
            stage.forward(batch, input, input_row, kernel, bias);
            (input, input_row) = (&stage.output, stage.dense.outputs);
        }
        for (logits, log_probs) in input
            .chunks_exact(self.classes)
            .zip(self.log_probs.chunks_exact_mut(self.classes))
            .take(batch)
        {
            log_softmax_row(logits, log_probs);
        }
    }

    fn forward_convs(&mut self, parameters: &Parameters, images: &[f32]) {
        let strip_len = self.convs.iter().map(|stage| stage.strip_len()).max().unwrap_or(0);
        let features = self.features..self.features + self.features_len;
        let convs = &self.convs;
        images
            .par_chunks_exact(self.image_len)
            .zip(self.activations.par_chunks_exact_mut(self.activations_len))
            .zip(self.marks.par_chunks_exact_mut(self.marks_len))
            .for_each(|((image, activations), marks)| match convs.first() {
                Some(first) => with_scratch([strip_len], |[strip]| {
                    first.conv.pad(image, first.conv.low_padding(), activations);
                    for stage in convs {
                        stage.forward(parameters.get(stage.params.1), activations, marks, strip);
                    }
                }),
                None => activations[features.clone()].copy_from_slice(image),
            });
    }

    /// Sum of the losses and number of correct images of the batch that went forward last.
    fn score(&self, labels: &[u32]) -> (f64, u32) {
        let rows = self.log_probs.chunks_exact(self.classes).zip(labels);
        rows.fold((0.0, 0), |(loss, correct), (log_probs, &label)| {
            let log_prob = log_probs[label as usize];
            let is_correct = argmax(log_probs) == label as usize;
            (loss - f64::from(log_prob), correct + u32::from(is_correct))
        })
    }

    /// The gradient of the mean loss with respect to the logits: (p − onehot) / n.
    fn start_backward(&mut self, labels: &[u32]) {
        let Some(last) = self.denses.last_mut() else {
            return;
        };
        let share = 1.0 / labels.len() as f32;
        let rows = last.d_output.chunks_exact_mut(self.classes);
        for ((d_logits, log_probs), &label) in
            rows.zip(self.log_probs.chunks_exact(self.classes)).zip(labels)
        {
            for (d_logit, log_prob) in d_logits.iter_mut().zip(log_probs) {
                *d_logit = log_prob.exp() * share;
            }
            d_logits[label as usize] -= share;
        }
        last.mask_gradient(labels.len());
    }

    fn backward_denses(&mut self, parameters: &mut Parameters, batch: usize) {
        for index in (0..self.denses.len()).rev() {
            let (below, stage) = self.denses.split_at_mut(index);
            match below.last_mut() {
                Some(below) => {
                    stage[0].backward(batch, &below.output, below.dense.outputs, parameters);
                    below.take_gradient(batch, &stage[0]);
                }
                None => {
                    let features = &self.activations[self.features..];
                    stage[0].backward(batch, features, self.activations_len, parameters);
                }
            }
        }
    }

    /// Groups of images side by side, each image back through all convolutions while it is in the
    /// cache. A group sums its own gradients; the groups, fixed by the batch size alone, are added
    /// in order.
    fn backward_convs(&mut self, parameters: &mut Parameters, batch: usize) {
        let (Some(dense), false) = (self.denses.first(), self.convs.is_empty()) else {
            return;
        };
        let outputs = self.convs.iter().map(ConvStage::output_len);
        let inputs = self.convs.iter().skip(1).map(|stage| stage.conv.input_len());
        let gradient_len = outputs.chain(inputs).max().unwrap_or(0);
        let d_output_len = self.convs.iter().map(ConvStage::d_output_len).max().unwrap_or(0);
        let group = batch.div_ceil(MAX_PARTIALS);
        let groups = batch.div_ceil(group);
        let partials = &mut self.partials[..groups * self.partial_len];
        partials.par_chunks_exact_mut(self.partial_len).enumerate().for_each(|(index, partial)| {
            partial.fill(0.0);
            let lens = [gradient_len, d_output_len, self.sums_len];
            with_scratch(lens, |[gradient, d_output, sums]| {
                sums.fill(0.0);
                for image in index * group..batch.min((index + 1) * group) {
                    let activations = &self.activations[image * self.activations_len..];
                    let marks = &self.marks[image * self.marks_len..];
                    dense.input_gradient(batch, image, &mut gradient[..self.features_len]);
                    for stage in self.convs.iter().rev() {
                        stage.backward(activations, marks, gradient, d_output, sums, partial);
                    }
                }
                for stage in &self.convs {
                    stage.finish_gradient(sums, partial);
                }
            });
        });

        let partials = &*partials;
        for stage in &self.convs {
            let (kernel, bias) = stage.params;
            let mut start = stage.gradient;
            for index in [kernel, bias] {
                let target = parameters.target(index);
                let len = target.param().len();
                target.par_blocks(SUM_BLOCK).enumerate().for_each(|(block, target)| {
                    let mut sum = [0.0; SUM_BLOCK];
                    let sum = &mut sum[..target.param().len()];
                    for partial in partials.chunks_exact(self.partial_len) {
                        add(&partial[start + block * SUM_BLOCK..][..sum.len()], sum);
                    }
                    target.apply(sum);
                });
                start += len;
            }
        }
    }
}

/// Runs `work` on a thread of the pool: the phases of a step then follow each other without waking
/// it anew.
fn in_pool<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| work())
}

/// The first of the largest values.
fn argmax(values: &[f32]) -> usize {
    let better = |best: usize, index: usize| {
        if values[index] > values[best] { index } else { best }
    };
    (0..values.len()).fold(0, better)
}
