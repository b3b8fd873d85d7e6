//! The tutorial's training from the command line: `cargo run --release --example train -- --help`.
//!
//! It calls the same functions as the notebook, so the same seed gives the same numbers.

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use mnist_notebook_support::get_datasets_from;
use mnist_notebook_support::prelude::*;
use serde_json::json;

/// Train the network of the annotated MNIST tutorial, and print loss and accuracy of each epoch
#[derive(Parser)]
#[command(name = "train")]
struct Arguments {
    /// Total number of epochs, counting those before a resume
    #[arg(long, default_value_t = 10)]
    epochs: usize,
    /// Images per step
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Step size [default: 0.1; with --resume, that of the checkpoint]
    #[arg(long, allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// Momentum coefficient (beta), below 1
    #[arg(long, default_value_t = 0.9, allow_negative_numbers = true)]
    momentum: f64,
    /// Seed of the initial weights and the shuffles
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: i64,
    /// Train on the first N images only
    #[arg(long, value_name = "N")]
    train_images: Option<usize>,
    /// Folder of the four MNIST files [default: the project's, or MNIST_DATA_DIR]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Save a checkpoint to this folder after each epoch; the newest three are kept
    #[arg(long, value_name = "DIR")]
    checkpoints: Option<PathBuf>,
    /// Resume from the newest checkpoint, with its settings, of which the learning rate can change
    #[arg(long, requires = "checkpoints")]
    #[arg(conflicts_with_all = ["batch_size", "momentum", "seed"])]
    resume: bool,
    /// Write loss and accuracy of all epochs to this file, after each epoch
    #[arg(long, value_name = "FILE.csv|FILE.json", value_parser = history_file)]
    history: Option<HistoryFile>,
}

type Outcome<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match train(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If it cannot be written, the exit code has to do.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn train(arguments: &Arguments) -> Outcome<()> {
    let device = best_device();
    let (train_ds, test_ds) = datasets(arguments, &device)?;
    let checkpoints = match &arguments.checkpoints {
        Some(folder) => Some(Checkpoints::new(folder, 3)?),
        None => None,
    };
    let mut run = match saved_run(arguments, checkpoints.as_ref(), &device)? {
        Some(mut run) => {
            if let Some(learning_rate) = arguments.learning_rate {
                run.state.optimizer.set_learning_rate(learning_rate)?;
            }
            run
        }
        None => initial_run(arguments, &device)?,
    };
    loop {
        // Also before the first epoch: an unwritable file must not cost an epoch.
        if let Some(file) = &arguments.history {
            file.write(&run.history)?;
        }
        if run.epoch >= arguments.epochs {
            let _ = writeln!(std::io::stdout(), "Finished after epoch {}.", run.epoch);
            return Ok(());
        }
        match &checkpoints {
            Some(checkpoints) => {
                checkpoints.train_epoch(&Cnn, &mut run, &train_ds, &test_ds)?
            }
            None => run.train_epoch(&Cnn, &train_ds, &test_ds)?,
        };
    }
}

/// The saved run with `--resume`; without it, existing checkpoints are an error.
fn saved_run(
    arguments: &Arguments,
    checkpoints: Option<&Checkpoints>,
    device: &Device,
) -> Outcome<Option<TrainingRun>> {
    let (Some(folder), Some(checkpoints)) = (&arguments.checkpoints, checkpoints)
    else {
        return Ok(None);
    };
    let folder = folder.display();
    match (checkpoints.resume(device)?, arguments.resume) {
        (Some(_), false) => Err(format!(
            "{folder} holds checkpoints: add --resume to continue from the newest, or name another \
             folder"
        ))?,
        (None, true) => Err(format!(
            "{folder} holds no checkpoints: leave out --resume to start from scratch"
        ))?,
        (run, _) => Ok(run),
    }
}

fn initial_run(arguments: &Arguments, device: &Device) -> Result<TrainingRun> {
    let (rng, init_rng) = Key::new(arguments.seed).split();
    let params = get_initial_params(&Cnn, init_rng, device)?;
    let learning_rate = arguments.learning_rate.unwrap_or(0.1);
    let optimizer = create_optimizer(&params, learning_rate, arguments.momentum)?;
    Ok(TrainingRun::new(optimizer, rng, arguments.batch_size))
}

fn datasets(arguments: &Arguments, device: &Device) -> Result<(Dataset, Dataset)> {
    let (train_ds, test_ds) = match &arguments.data {
        Some(folder) => get_datasets_from(folder, device)?,
        None => get_datasets(device)?,
    };
    let count = arguments.train_images.unwrap_or(train_ds.len()).min(train_ds.len());
    Ok((train_ds.slice(0, count)?, test_ds))
}

/// The path and format of the history.
#[derive(Clone)]
struct HistoryFile {
    path: PathBuf,
    format: fn(&[EpochMetrics]) -> String,
}

fn history_file(path: &str) -> std::result::Result<HistoryFile, &'static str> {
    let path = Path::new(path);
    let format = match path.extension().and_then(|extension| extension.to_str()) {
        Some("csv") => csv,
        Some("json") => json,
        _ => return Err("its name must end in .csv or .json"),
    };
    Ok(HistoryFile { path: path.to_owned(), format })
}

impl HistoryFile {
    fn write(&self, history: &[EpochMetrics]) -> Outcome<()> {
        std::fs::write(&self.path, (self.format)(history)).map_err(|error| {
            format!("cannot write {}: {error}", self.path.display()).into()
        })
    }
}

fn csv(history: &[EpochMetrics]) -> String {
    let header = "epoch,train_loss,train_accuracy,test_loss,test_accuracy\n".to_owned();
    history.iter().zip(1..).fold(
        header,
        |table, (EpochMetrics { train, test }, epoch)| {
            let numbers = [train.loss, train.accuracy, test.loss, test.accuracy];
            table
                + &format!(
                    "{epoch},{}\n",
                    numbers.map(|number| number.to_string()).join(",")
                )
        },
    )
}

fn json(history: &[EpochMetrics]) -> String {
    let metrics =
        |metrics: Metrics| json!({"loss": metrics.loss, "accuracy": metrics.accuracy});
    let epochs = history.iter().zip(1..).map(|(&EpochMetrics { train, test }, epoch)| {
        json!({"epoch": epoch, "train": metrics(train), "test": metrics(test)})
    });
    format!("{:#}\n", serde_json::Value::from_iter(epochs))
}
