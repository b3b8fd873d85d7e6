//! Training for tests that kill it: `train_with_checkpoints FOLDER EPOCHS`.
//!
//! It resumes from the newest checkpoint in the folder and saves one after each epoch. The network
//! and the data, which is noise, are small: a run takes a fraction of a second.

use std::process::ExitCode;

use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::{bits, uniform};

struct Small;

impl Module for Small {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = relu(&nn.dense(512, &flatten(x)?)?)?;
        log_softmax(&nn.dense(10, &x)?)
    }
}

fn noise(key: Key, len: usize) -> Result<Dataset> {
    let (image_rng, label_rng) = key.split();
    let image = uniform(image_rng, (len, 16, 16, 1), 0.0, 1.0, &Device::Cpu)?;
    let label = bits(label_rng, len, &Device::Cpu)?.to_vec1::<u32>()?;
    let label = label.into_iter().map(|bits| bits % 10).collect::<Vec<_>>();
    Dataset::new(image, Tensor::from_vec(label, len, &Device::Cpu)?)
}

fn train(folder: &str, epochs: usize) -> Result<()> {
    let (train_ds, test_ds) = (noise(Key::new(1), 512)?, noise(Key::new(2), 100)?);
    let checkpoints = Checkpoints::new(folder, 2)?;
    let mut run = match checkpoints.resume(&Device::Cpu)? {
        Some(run) => run,
        None => {
            let (rng, init_rng) = Key::new(0).split();
            let params = Small.init(init_rng, train_ds.image())?;
            TrainingRun::new(create_optimizer(&params, 0.05, 0.9)?, rng, 32)
        }
    };
    while run.epoch < epochs {
        checkpoints.train_epoch(&Small, &mut run, &train_ds, &test_ds)?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments = std::env::args().collect::<Vec<_>>();
    let result = match &arguments[..] {
        [_, folder, epochs] => match epochs.parse() {
            Ok(epochs) => train(folder, epochs).map_err(|error| error.to_string()),
            Err(error) => Err(format!("{epochs}: {error}")),
        },
        _ => Err("usage: train_with_checkpoints FOLDER EPOCHS".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
