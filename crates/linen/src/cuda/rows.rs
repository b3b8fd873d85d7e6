//! The metrics of compiled steps: one row each, in arrays that many steps share.
//!
//! So a step allocates no GPU memory, and a few transfers fetch the metrics of an epoch.

use candle_core::cuda_backend::{CudaDevice, WrapErr};
use candle_core::{DType, Device, Storage, Tensor};

use crate::cuda::plan::{ROW, read};
use crate::error::Result;
use crate::metrics::{BatchMetrics, Metrics};

/// Rows per array.
const ROWS: usize = 1024;

/// Hands out rows to steps.
pub(super) struct Rows {
    array: Tensor,
    used: usize,
}

impl Rows {
    pub(super) fn new(device: &CudaDevice) -> Result<Self> {
        let array = Tensor::zeros((ROWS, ROW), DType::F32, &Device::Cuda(device.clone()))?;
        Ok(Self { array, used: 0 })
    }

    /// The next free row. A row keeps its array alive.
    pub(super) fn next(&mut self) -> Result<Tensor> {
        if self.used == ROWS {
            self.array = self.array.zeros_like()?;
            self.used = 0;
        }
        self.used += 1;
        Ok(self.array.get(self.used - 1)?)
    }
}

/// Mean loss and accuracy, as views of a row.
pub(super) fn metrics_in(row: &Tensor) -> Result<BatchMetrics> {
    Ok(BatchMetrics { loss: row.get(0)?, accuracy: row.get(1)? })
}

/// The metrics of steps, fetching each array of rows once; `None` unless all are in such rows.
///
/// # Errors
/// [`Error::Label`](crate::error::Error::Label) for the first step with an out-of-range label.
pub(crate) fn fetch(batches: &[BatchMetrics]) -> Result<Option<Vec<Metrics>>> {
    let mut array: (_, Vec<f32>) = (std::ptr::null(), Vec::new());
    let mut all = Vec::with_capacity(batches.len());
    for batch in batches {
        let (storage, loss) = batch.loss.storage_and_layout();
        let (accuracy_storage, accuracy) = batch.accuracy.storage_and_layout();
        let (at, start) = (&raw const *storage, loss.start_offset());
        let Storage::Cuda(cuda) = &*storage else {
            return Ok(None);
        };
        let is_row = std::ptr::eq(at, &raw const *accuracy_storage)
            && start % ROW == 0
            && accuracy.start_offset() == start + 1;
        match cuda.as_cuda_slice::<f32>() {
            Ok(values) if is_row && values.len() == ROWS * ROW => {
                if !std::ptr::eq(array.0, at) {
                    // The step may have been queued by another thread, on a stream of its own.
                    cuda.device.cuda_stream().context().synchronize().w()?;
                    array = (at, cuda.device.clone_dtoh(values)?);
                }
            }
            _ => return Ok(None),
        }
        let (rows, _) = array.1.as_chunks::<ROW>();
        all.push(read(&rows[start / ROW])?);
    }
    Ok(Some(all))
}
