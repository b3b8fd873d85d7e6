//! A run of the tutorial.

use cpu_kernels::{StepResult, UpdateRule};
use jax_random::{Key, permutation};

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::network::{CLASSES, Network, PARAMS, initial_params, most_probable, split_mut};

/// The tutorial's momentum.
const BETA: f64 = 0.9;

/// The beginning of a saved state, which names its format.
const FORMAT: &[u8; 8] = b"mnist-1\n";

/// Bytes before the parameters: the format, two words of the key, epoch, batch, learning rate.
const HEADER_LEN: usize = 32;

/// The number of bytes in a saved state.
pub const STATE_LEN: usize = HEADER_LEN + 2 * 4 * PARAMS;

/// Training as in the tutorial: its network, momentum, and keys.
#[derive(Debug)]
pub struct Training {
    network: Network,
    moments: Vec<f32>,
    learning_rate: f64,
    rng: Key,
    /// The number of epochs that have begun.
    epoch: u32,
    /// The rest of this epoch's order of examples.
    order: std::vec::IntoIter<u32>,
    images: Vec<f32>,
    labels: Vec<u32>,
}

impl Training {
    /// A new run with the keys of a seed, as in the tutorial's notebook.
    ///
    /// # Errors
    /// If the learning rate or the batch size is not positive, or the batch is too large.
    pub fn new(seed: u32, learning_rate: f64, batch: usize) -> Result<Self> {
        let (rng, init_rng) = Key::new(i64::from(seed)).split();
        let mut training = Self::blank(learning_rate, batch, rng)?;
        training.network.params = initial_params(init_rng);
        Ok(training)
    }

    fn blank(learning_rate: f64, batch: usize, rng: Key) -> Result<Self> {
        if !(learning_rate > 0.0 && learning_rate.is_finite()) {
            return Err(Error::LearningRate(learning_rate));
        }
        Ok(Self {
            network: Network::new(batch)?,
            moments: vec![0.0; PARAMS],
            learning_rate,
            rng,
            epoch: 0,
            order: Vec::new().into_iter(),
            images: Vec::new(),
            labels: Vec::new(),
        })
    }

    /// The network in its present state.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The number of epochs that have begun.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Begins an epoch: draws the order of the examples, `permutation(input_rng, n)` in the
    /// tutorial. Returns the number of steps; an incomplete last batch is skipped.
    pub fn start_epoch(&mut self, data: &Dataset) -> usize {
        let (rng, input_rng) = self.rng.split();
        self.rng = rng;
        self.epoch += 1;
        self.order = permutation(input_rng, data.len()).into_iter();
        data.len() / self.network.program.batch()
    }

    /// The next step of the epoch, or `None` at its end. `data` is that of [`Self::start_epoch`].
    ///
    /// # Errors
    /// [`Error::Dataset`] if it has fewer images.
    pub fn step(&mut self, data: &Dataset) -> Result<Option<StepResult>> {
        let batch = self.network.program.batch();
        let Some(indices) = self.order.as_slice().get(..batch) else {
            return Ok(None);
        };
        let indices = indices.iter().map(|index| *index as usize);
        if indices.clone().any(|index| index >= data.len()) {
            return Err(Error::Dataset("the epoch began with another one"));
        }
        data.gather(indices, &mut self.images, &mut self.labels);
        self.order.by_ref().take(batch).for_each(drop);
        let rule =
            UpdateRule::Momentum { learning_rate: self.learning_rate, beta: BETA, nesterov: false };
        let Network { program, params } = &mut self.network;
        let (mut params, mut moments) = (split_mut(params), split_mut(&mut self.moments));
        let result =
            program.train_step(&mut params, &mut moments, &self.images, &self.labels, rule)?;
        Ok(Some(result))
    }

    /// Evaluates the images from `first` on, one per value of `predictions`, which become the most
    /// probable digits.
    ///
    /// # Errors
    /// [`Error::Dataset`] if there are not that many images.
    pub fn evaluate(
        &mut self,
        data: &Dataset,
        first: usize,
        predictions: &mut [u8],
    ) -> Result<StepResult> {
        let end = first.saturating_add(predictions.len());
        if end > data.len() || predictions.is_empty() {
            return Err(Error::Dataset("there are not that many images"));
        }
        data.gather(first..end, &mut self.images, &mut self.labels);
        let mut log_probs = vec![0.0; predictions.len() * CLASSES];
        self.network.log_probabilities(&self.images, &mut log_probs)?;
        predictions.iter_mut().zip(most_probable(&log_probs)).for_each(|(to, digit)| *to = digit);
        let rows = log_probs.chunks_exact(CLASSES).zip(&self.labels);
        let loss = rows.map(|(row, label)| -f64::from(row[*label as usize])).sum::<f64>();
        let pairs = predictions.iter().zip(&self.labels);
        let correct = pairs.filter(|(digit, label)| u32::from(**digit) == **label).count();
        Ok(StepResult { loss: (loss / predictions.len() as f64) as f32, correct: correct as u32 })
    }

    /// Everything that the run needs to go on after this epoch, [`STATE_LEN`] bytes.
    pub fn save(&self) -> Vec<u8> {
        let mut state = Vec::with_capacity(STATE_LEN);
        state.extend(FORMAT);
        let batch = self.network.program.batch() as u32;
        let [a, b] = self.rng.words();
        state.extend([a, b, self.epoch, batch].into_iter().flat_map(u32::to_le_bytes));
        state.extend(self.learning_rate.to_le_bytes());
        let values = self.network.params.iter().chain(&self.moments);
        state.extend(values.flat_map(|value| value.to_le_bytes()));
        state
    }

    /// The run of a saved state.
    ///
    /// # Errors
    /// [`Error::State`] if it is not one; [`Error::LearningRate`] and those of [`Network::new`] if
    /// it has impossible values.
    pub fn restore(state: &[u8]) -> Result<Self> {
        let numbers = state.strip_prefix(FORMAT).ok_or(Error::State("its format differs"))?;
        if state.len() != STATE_LEN {
            return Err(Error::State("it is incomplete"));
        }
        let (header, values) = numbers.split_at(HEADER_LEN - FORMAT.len());
        let (words, _) = header.as_chunks();
        let (rates, _) = header[16..].as_chunks();
        let [a, b, epoch, batch] = std::array::from_fn(|index| u32::from_le_bytes(words[index]));
        let rate = f64::from_le_bytes(rates[0]);
        let mut training = Self::blank(rate, batch as usize, Key::from_words([a, b]))?;
        training.epoch = epoch;
        let targets = training.network.params.iter_mut().chain(&mut training.moments);
        for (target, bytes) in targets.zip(values.as_chunks().0) {
            *target = f32::from_le_bytes(*bytes);
        }
        Ok(training)
    }
}
