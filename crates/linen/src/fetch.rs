//! Fetches metrics from the device. Separate from `metrics`, whose types `cuda` needs.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::metrics::{BatchMetrics, Metrics};

impl BatchMetrics {
    /// Fetches the metrics of this batch from the device.
    ///
    /// # Errors
    /// Those of [`get_all`](BatchMetrics::get_all).
    pub fn get(&self) -> Result<Metrics> {
        Ok(Self::get_all(std::slice::from_ref(self))?[0])
    }

    /// Fetches the metrics of many batches from the device at once.
    ///
    /// # Errors
    /// [`Error::Tensor`](crate::Error::Tensor) if the device fails;
    /// [`Error::Label`](crate::Error::Label) if a compiled step on an NVIDIA GPU, which runs
    /// asynchronously, found an out-of-range label.
    pub fn get_all(batches: &[BatchMetrics]) -> Result<Vec<Metrics>> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        #[cfg(feature = "cuda")]
        if let Some(rows) = crate::cuda::fetch(batches)? {
            return Ok(rows);
        }
        let fetch = |scalar: fn(&BatchMetrics) -> &Tensor| -> Result<Vec<f32>> {
            let scalars: Vec<&Tensor> = batches.iter().map(scalar).collect();
            Ok(Tensor::stack(&scalars, 0)?.to_dtype(DType::F32)?.to_vec1()?)
        };
        let (losses, accuracies) = (fetch(|b| &b.loss)?, fetch(|b| &b.accuracy)?);
        let pairs = losses.into_iter().zip(accuracies);
        Ok(pairs.map(|(loss, accuracy)| Metrics { loss, accuracy }).collect())
    }
}
