//! The trained parameters that the notebooks share.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use linen::{Key, Module, Params, Result};
use notebook_display::println;

use crate::dataset::get_datasets;
use crate::initializer::get_initial_params;
use crate::model::Cnn;
use crate::optimizer::create_optimizer;
use crate::train_epoch::train_epoch;

/// The parameters of [`Cnn`] from a file, such as the walkthrough saves; if there is none, trains
/// three epochs from key 0 and saves it. Says which.
///
/// # Errors
/// [`Error::Load`](linen::Error::Load) for a damaged file; those of [`Module::apply`] for one of
/// another network; those of training and of [`Params::save`].
pub fn trained_params(file: impl AsRef<Path>, device: &Device) -> Result<Params> {
    let file = file.as_ref();
    if file.exists() {
        let params = Params::load(file, device)?;
        Cnn.apply(&params, &Tensor::zeros((1, 28, 28, 1), DType::F32, device)?)?;
        println!("Loaded {}.", file.display());
        return Ok(params);
    }
    println!("There is no {}: training for three epochs.", file.display());
    let (train_ds, _) = get_datasets(device)?;
    let (mut rng, init_rng) = Key::new(0).split();
    let params = get_initial_params(&Cnn, init_rng, device)?;
    let mut optimizer = create_optimizer(&params, 0.1, 0.9)?;
    for epoch in 1..=3 {
        let input_rng;
        (rng, input_rng) = rng.split();
        train_epoch(&Cnn, &mut optimizer, &train_ds, 32, epoch, input_rng)?;
    }
    optimizer.target().save(file)?;
    optimizer.target().copy()
}
