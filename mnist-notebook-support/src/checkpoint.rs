//! Checkpoints: interrupted training resumes where it stopped.
//!
//! A [`TrainingRun`] is everything that training depends on. [`Checkpoints`] saves it to a file
//! after each epoch and loads the newest file again. Resumed training ends with the same
//! parameters, bit for bit, as uninterrupted training.
//!
//! A checkpoint is a [safetensors](https://github.com/huggingface/safetensors) file: parameters
//! under `params/…`, running statistics under `batch_stats/…`, the optimizer's moments under their
//! names, such as `momentum/…`, everything else as text in the header.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use candle_core::Device;
use linen::files::{self, FileError, TensorFile};
use linen::{
    Adam, AdamW, BatchMetrics, Cause, Error, Key, Metrics, Module, Momentum, Optimizer,
    Params, Result, Rule, TrainState,
};
use notebook_display::println;

use crate::dataset::{Batch, Dataset};
use crate::error::{CheckpointError, Diverged};
use crate::history::{EpochMetrics, History};
use crate::train_epoch::{eval_model, train_epoch_with};
use crate::train_step::train_step;

/// The header's `format` entry.
const FORMAT: &str = "mnist-notebook-support checkpoint";
/// The format version that this code writes.
const VERSION: u32 = 3;
/// The format version before it, which this code reads, too: without statistics and dropout key.
const EARLIER_VERSION: u32 = 2;

/// Name prefix of parameters in a file.
const PARAMS: &str = "params/";
/// Name prefix of running statistics in a file.
const BATCH_STATS: &str = "batch_stats/";

/// The header's `dropout_key` entry if there is no key.
const NO_KEY: &str = "none";

/// The file names are this, the epoch, and `.safetensors`.
const NAME: &str = "epoch-";

/// Everything that training depends on, between two epochs.
#[derive(Debug)]
pub struct TrainingRun {
    /// What the steps change: the parameters and their optimizer, and for a network with batch norm
    /// or dropout what these need.
    pub state: TrainState,
    /// The key that shuffles the remaining epochs.
    pub rng: Key,
    /// The number of epochs trained.
    pub epoch: usize,
    /// The number of examples per step.
    pub batch_size: usize,
    /// The metrics of each epoch so far.
    pub history: History,
}

impl TrainingRun {
    /// A run before its first epoch, of a [`TrainState`] or an [`Optimizer`].
    pub fn new(state: impl Into<TrainState>, rng: Key, batch_size: usize) -> Self {
        TrainingRun {
            state: state.into(),
            rng,
            epoch: 0,
            batch_size,
            history: History::new(),
        }
    }

    /// Trains for one epoch, evaluates, and prints both: the body of the tutorial's loop.
    ///
    /// # Errors
    /// Those of [`train_epoch`](crate::train_epoch) and [`eval_model`]; also [`Diverged`] if only
    /// the test loss is not finite. After an error the run is the same as before the epoch.
    pub fn train_epoch(
        &mut self,
        model: &impl Module,
        train_ds: &Dataset,
        test_ds: &Dataset,
    ) -> Result<EpochMetrics> {
        let step = |state: &mut _, batch: &Batch| train_step(model, state, batch);
        self.train_epoch_with(model, train_ds, test_ds, step)
    }

    /// [`train_epoch`](TrainingRun::train_epoch) with a step of your own.
    ///
    /// # Errors
    /// Those of [`train_epoch_with`] and [`eval_model`]; also [`Diverged`] if only the test loss is
    /// not finite. After an error the run is the same as before the epoch.
    pub fn train_epoch_with(
        &mut self,
        model: &impl Module,
        train_ds: &Dataset,
        test_ds: &Dataset,
        step: impl FnMut(&mut TrainState, &Batch) -> Result<BatchMetrics>,
    ) -> Result<EpochMetrics> {
        let epoch = self.epoch.saturating_add(1);
        let (rng, input_rng) = self.rng.split();
        let before = self.state.copy()?;
        let metrics = self.try_epoch(model, train_ds, test_ds, epoch, input_rng, step);
        match metrics {
            Ok(metrics) => {
                self.history.push(metrics.train, metrics.test);
                (self.rng, self.epoch) = (rng, epoch);
            }
            Err(_) => self.state = before,
        }
        metrics
    }

    /// Trains and evaluates; after an error the parameters may have changed.
    fn try_epoch(
        &mut self,
        model: &impl Module,
        train_ds: &Dataset,
        test_ds: &Dataset,
        epoch: usize,
        input_rng: Key,
        step: impl FnMut(&mut TrainState, &Batch) -> Result<BatchMetrics>,
    ) -> Result<EpochMetrics> {
        let Self { state, batch_size, .. } = self;
        let train =
            train_epoch_with(state, train_ds, *batch_size, epoch, input_rng, step)?;
        let test = eval_model(model, state, test_ds)?;
        println!("Testing - epoch: {epoch}, {test:.2}");
        if !test.loss.is_finite() {
            test_ds.check_pixels()?;
            let (step, loss) = (train_ds.len() / *batch_size, test.loss);
            return Err(Diverged { epoch, step, loss, checkpoint: None }.into());
        }
        Ok(EpochMetrics { train, test })
    }

    /// The content of a checkpoint file.
    ///
    /// # Errors
    /// [`Error::Tensor`] if the parameters cannot be copied from the device.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let TrainState { optimizer, batch_stats, .. } = &self.state;
        let mut tensors =
            optimizer.target().tensors(PARAMS).collect::<BTreeMap<_, _>>();
        tensors.extend(batch_stats.tensors(BATCH_STATS));
        for (name, moment) in optimizer.moments() {
            tensors.extend(moment.tensors(&format!("{name}/")));
        }
        files::to_bytes(self.header(), &tensors)
    }

    fn header(&self) -> BTreeMap<String, String> {
        let TrainState { optimizer, dropout_key, .. } = &self.state;
        let words = |key: Key| {
            let [high, low] = key.words();
            format!("{high} {low}")
        };
        let line = |EpochMetrics { train, test }: &EpochMetrics| {
            format!("{} {} {} {}", train.loss, train.accuracy, test.loss, test.accuracy)
        };
        let history = self.history.iter().map(line).collect::<Vec<_>>().join("\n");
        // `Display` writes floats with enough digits to read back the same bits.
        let mut header = BTreeMap::new();
        let mut set = |name: &str, value: String| header.insert(name.to_owned(), value);
        set("format", FORMAT.to_owned());
        set("version", VERSION.to_string());
        set("epoch", self.epoch.to_string());
        set("rng", words(self.rng));
        set("dropout_key", dropout_key.map_or(NO_KEY.to_owned(), words));
        set("batch_size", self.batch_size.to_string());
        set("learning_rate", optimizer.learning_rate().to_string());
        set("step_count", optimizer.step_count().to_string());
        match optimizer.rule() {
            Rule::Momentum(Momentum { beta, nesterov }) => {
                set("rule", "momentum".into());
                set("beta", beta.to_string());
                set("nesterov", nesterov.to_string());
            }
            Rule::Adam(Adam { beta1, beta2, epsilon }) => {
                set("rule", "adam".into());
                set("beta1", beta1.to_string());
                set("beta2", beta2.to_string());
                set("epsilon", epsilon.to_string());
            }
            Rule::AdamW(AdamW { beta1, beta2, epsilon, weight_decay }) => {
                set("rule", "adamw".into());
                set("beta1", beta1.to_string());
                set("beta2", beta2.to_string());
                set("epsilon", epsilon.to_string());
                set("weight_decay", weight_decay.to_string());
            }
        }
        set("history", history);
        header
    }

    /// Reads the content of a checkpoint file; the parameters are put on `device`.
    ///
    /// # Errors
    /// The reason why the content is not a good checkpoint.
    pub fn from_bytes(bytes: &[u8], device: &Device) -> Result<TrainingRun, Cause> {
        let file = TensorFile::parse(bytes)?;
        let header = Header(&file.header);
        if header.0.get("format").is_none_or(|format| format != FORMAT) {
            return Err(
                "it is a safetensors file, but not a checkpoint of this crate".into()
            );
        }
        let version: u32 = header.value("version")?;
        if version != VERSION && version != EARLIER_VERSION {
            return Err(format!(
                "it has format version {version} and this crate reads versions {EARLIER_VERSION} \
                 and {VERSION}: use the version of the crate that wrote it"
            )
            .into());
        }
        if file.is_intact() != Some(true) {
            return Err(FileError::Damaged.into());
        }
        let load =
            |group: &str| -> Result<Params> { file.tensors(group, device)?.try_into() };
        let rule = header.rule()?;
        let moments = rule.moment_names().iter();
        let moments = moments.map(|&name| Ok((name, load(&format!("{name}/"))?)));
        let optimizer = Optimizer::from_parts(
            load(PARAMS)?,
            header.value("learning_rate")?,
            rule,
            header.value("step_count")?,
            moments.collect::<Result<_>>()?,
        )?;
        let dropout_key =
            if version == EARLIER_VERSION { None } else { header.dropout_key()? };
        Ok(TrainingRun {
            state: TrainState {
                optimizer,
                batch_stats: load(BATCH_STATS)?,
                dropout_key,
            },
            rng: header.key("rng")?,
            epoch: header.value("epoch")?,
            batch_size: header.value("batch_size")?,
            history: header
                .text("history")?
                .lines()
                .map(parse_epoch_metrics)
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The header of a checkpoint.
struct Header<'a>(&'a BTreeMap<String, String>);

impl Header<'_> {
    fn text(&self, name: &str) -> Result<&str, String> {
        self.0
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| format!("its header lacks {name:?}"))
    }

    fn value<T: FromStr>(&self, name: &str) -> Result<T, String> {
        let text = self.text(name)?;
        text.parse().map_err(|_| format!("its header has {name} = {text:?}"))
    }

    fn key(&self, name: &str) -> Result<Key, String> {
        Ok(Key::from_words(parse_numbers(self.text(name)?)?))
    }

    fn dropout_key(&self) -> Result<Option<Key>, String> {
        let name = "dropout_key";
        if self.text(name)? == NO_KEY { Ok(None) } else { self.key(name).map(Some) }
    }

    fn rule(&self) -> Result<Rule, String> {
        match self.text("rule")? {
            "momentum" => {
                let (beta, nesterov) = (self.value("beta")?, self.value("nesterov")?);
                Ok(Momentum { beta, nesterov }.into())
            }
            "adam" => Ok(self.adam()?.into()),
            "adamw" => {
                let Adam { beta1, beta2, epsilon } = self.adam()?;
                let weight_decay = self.value("weight_decay")?;
                Ok(AdamW { beta1, beta2, epsilon, weight_decay }.into())
            }
            other => Err(format!("its header has rule = {other:?}")),
        }
    }

    fn adam(&self) -> Result<Adam, String> {
        let (beta1, beta2) = (self.value("beta1")?, self.value("beta2")?);
        Ok(Adam { beta1, beta2, epsilon: self.value("epsilon")? })
    }
}

/// Parses `N` numbers separated by spaces.
fn parse_numbers<T: FromStr, const N: usize>(text: &str) -> Result<[T; N], String> {
    let numbers = text.split(' ').map(str::parse).collect::<Result<Vec<T>, _>>().ok();
    let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
    numbers.ok_or_else(|| format!("its header has {text:?} instead of {N} numbers"))
}

/// Parses a line of the history.
fn parse_epoch_metrics(line: &str) -> Result<EpochMetrics, String> {
    let [train_loss, train_accuracy, loss, accuracy] = parse_numbers(line)?;
    let train = Metrics { loss: train_loss, accuracy: train_accuracy };
    Ok(EpochMetrics { train, test: Metrics { loss, accuracy } })
}

/// A folder with the checkpoints of one run: `epoch-0001.safetensors` and so on.
///
/// # Examples
/// ```
/// use mnist_notebook_support::prelude::*;
/// # let (train_ds, test_ds) = get_datasets(&Device::Cpu)?;
/// # let (train_ds, test_ds) = (train_ds.slice(0, 64)?, test_ds.slice(0, 50)?);
/// # let folder = tempfile::tempdir().unwrap();
/// # let folder = folder.path().join("checkpoints");
///
/// let checkpoints = Checkpoints::new(folder, 3)?; // keeps the newest three
/// let mut run = match checkpoints.resume(&Device::Cpu)? {
///     Some(run) => run,
///     None => {
///         let (rng, init_rng) = Key::new(0).split();
///         let params = get_initial_params(&Cnn, init_rng, &Device::Cpu)?;
///         TrainingRun::new(create_optimizer(&params, 0.1, 0.9)?, rng, 32)
///     }
/// };
/// while run.epoch < 2 {
///     checkpoints.train_epoch(&Cnn, &mut run, &train_ds, &test_ds)?;
/// }
/// assert_eq!(run.history.len(), 2);
/// # Ok::<(), mnist_notebook_support::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// Keeps the newest `keep` checkpoints in a folder, which is created if it does not exist.
    ///
    /// Each run needs its own folder.
    ///
    /// # Errors
    /// [`Error::Hyperparameter`] if `keep` is 0; [`Error::Save`] if the folder cannot be created.
    pub fn new(folder: impl Into<PathBuf>, keep: usize) -> Result<Self> {
        if keep == 0 {
            let allowed = "at least one checkpoint must be kept";
            return Err(Error::Hyperparameter { name: "keep", value: 0.0, allowed });
        }
        let folder = folder.into();
        std::fs::create_dir_all(&folder).map_err(Error::save(&folder))?;
        Ok(Checkpoints { folder, keep })
    }

    /// Trains for one epoch with [`TrainingRun::train_epoch`] and saves the new run.
    ///
    /// # Errors
    /// Those of [`TrainingRun::train_epoch`] and [`save`](Checkpoints::save);
    /// [`CheckpointError::Later`] before anything is trained. If training diverges, [`Diverged`]
    /// names the last good checkpoint.
    pub fn train_epoch(
        &self,
        model: &impl Module,
        run: &mut TrainingRun,
        train_ds: &Dataset,
        test_ds: &Dataset,
    ) -> Result<EpochMetrics> {
        let step = |state: &mut _, batch: &Batch| train_step(model, state, batch);
        self.train_epoch_with(model, run, train_ds, test_ds, step)
    }

    /// [`train_epoch`](Checkpoints::train_epoch) with a step of your own.
    ///
    /// # Errors
    /// Those of [`TrainingRun::train_epoch_with`], and of [`train_epoch`](Checkpoints::train_epoch)
    /// about checkpoints.
    pub fn train_epoch_with(
        &self,
        model: &impl Module,
        run: &mut TrainingRun,
        train_ds: &Dataset,
        test_ds: &Dataset,
        step: impl FnMut(&mut TrainState, &Batch) -> Result<BatchMetrics>,
    ) -> Result<EpochMetrics> {
        self.check_newest(run.epoch)?;
        let metrics = run.train_epoch_with(model, train_ds, test_ds, step);
        let metrics = metrics.map_err(|error| match error.downcast_ref() {
            Some(&Diverged { epoch, step, loss, .. }) => {
                let checkpoint = self.newest_good(usize::MAX);
                Diverged { epoch, step, loss, checkpoint }.into()
            }
            None => error,
        })?;
        self.save(run)?;
        Ok(metrics)
    }

    /// Saves a run under its epoch, then removes all but the newest `keep` checkpoints.
    ///
    /// The write is atomic: if it fails, the earlier checkpoints are unchanged.
    ///
    /// # Errors
    /// [`Error::Save`] if the disk is full or the folder is not writable;
    /// [`CheckpointError::Later`] if the folder holds a later epoch, that is, another run.
    pub fn save(&self, run: &TrainingRun) -> Result<PathBuf> {
        self.check_newest(run.epoch)?;
        let path = self.folder.join(format!("{NAME}{:04}.safetensors", run.epoch));
        files::write(&path, &run.to_bytes()?)?;
        self.remove_old()?;
        Ok(path)
    }

    /// Checks that no checkpoint is of a later epoch than `epoch`.
    fn check_newest(&self, epoch: usize) -> Result<()> {
        match self.list()?.pop() {
            Some((newest, path)) if newest > epoch => {
                Err(CheckpointError::Later { path, epoch }.into())
            }
            _ => Ok(()),
        }
    }

    /// Loads the newest checkpoint; `None` if there is none.
    ///
    /// # Errors
    /// Those of [`load`](Checkpoints::load): a bad checkpoint is not skipped silently.
    pub fn resume(&self, device: &Device) -> Result<Option<TrainingRun>> {
        match self.list()?.pop() {
            Some((_, path)) => self.load(path, device).map(Some),
            None => Ok(None),
        }
    }

    /// Loads one of the folder's checkpoints; the parameters are put on `device`.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if the file is damaged, not a checkpoint, or of another format
    /// version; it names the newest good checkpoint before this one.
    pub fn load(&self, path: impl AsRef<Path>, device: &Device) -> Result<TrainingRun> {
        let path = path.as_ref();
        read(path, device).map_err(|source| {
            let previous = self.newest_good(epoch_of(path).unwrap_or(usize::MAX));
            CheckpointError::Damaged { path: path.to_owned(), source, previous }.into()
        })
    }

    /// The newest readable checkpoint before an epoch.
    fn newest_good(&self, before: usize) -> Option<PathBuf> {
        let paths = self.list().ok()?.into_iter().rev();
        let mut earlier =
            paths.filter(|(epoch, _)| *epoch < before).map(|(_, path)| path);
        earlier.find(|path| read(path, &Device::Cpu).is_ok())
    }

    /// Epochs and files of the checkpoints in the folder, oldest first.
    fn list(&self) -> Result<Vec<(usize, PathBuf)>> {
        let paths = self.paths()?;
        let mut checkpoints =
            paths.filter_map(|path| Some((epoch_of(&path)?, path))).collect::<Vec<_>>();
        checkpoints.sort();
        Ok(checkpoints)
    }

    fn paths(&self) -> Result<impl Iterator<Item = PathBuf>> {
        let entries = std::fs::read_dir(&self.folder).and_then(Iterator::collect);
        let entries: Vec<std::fs::DirEntry> = entries.map_err(|source| {
            CheckpointError::Folder { path: self.folder.clone(), source }
        })?;
        Ok(entries.into_iter().map(|entry| entry.path()))
    }

    /// Removes surplus checkpoints and the partial files of killed processes.
    fn remove_old(&self) -> Result<()> {
        let partial = format!("{}{NAME}", files::PARTIAL);
        let is_partial = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(&partial) && path.is_file()
        };
        let checkpoints = self.list()?;
        let surplus = checkpoints.len().saturating_sub(self.keep);
        let old = checkpoints.into_iter().take(surplus).map(|(_, path)| path);
        for path in old.chain(self.paths()?.filter(is_partial)) {
            std::fs::remove_file(&path).map_err(Error::save(&path))?;
        }
        Ok(())
    }
}

fn read(path: &Path, device: &Device) -> Result<TrainingRun, Cause> {
    let bytes = std::fs::read(path).map_err(FileError::from)?;
    TrainingRun::from_bytes(&bytes, device)
}

/// The epoch in a checkpoint's file name.
fn epoch_of(path: &Path) -> Option<usize> {
    path.file_name()?
        .to_str()?
        .strip_prefix(NAME)?
        .strip_suffix(".safetensors")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests;
