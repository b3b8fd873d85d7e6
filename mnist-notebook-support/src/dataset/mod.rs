//! MNIST, 60,000 training and 10,000 test images of handwritten digits, and Fashion-MNIST, the same
//! number of images of clothes.

#[cfg(feature = "download")]
mod download;
mod files;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use linen::{BatchMetrics, Error, Metrics, Result, check, memory};
use mnist::Mnist;
use ndarray::ArrayView1;

use crate::error::DataError;

/// Enough images to keep every core busy, few enough to need little memory.
const EVAL_BATCH: usize = 100;
/// The same for a GPU.
const EVAL_BATCH_ON_GPU: usize = 2000;

/// Images with their labels: a whole dataset, or a batch of one.
///
/// One that exists is sound: it has one label per image, and the types are those of
/// [`new`](Dataset::new).
#[derive(Debug, Clone)]
pub struct Dataset {
    image: Tensor,
    label: Tensor,
    /// At least the largest label, known without asking the device.
    max_label: u32,
}

/// Some examples of a [`Dataset`]. As in the tutorial, both are an image and a label array.
pub type Batch = Dataset;

impl Dataset {
    /// A custom dataset.
    ///
    /// # Shapes
    /// - `image`: `[N, height, width, channels]`, any float type
    /// - `label`: `[N]`, u32
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::DType`] for other tensors; [`DataError::Lengths`] if there is
    /// not one label per image.
    pub fn new(image: Tensor, label: Tensor) -> Result<Self> {
        if image.rank() != 4 {
            return Err(Error::shape(
                "dataset images",
                "[N, height, width, channels]",
                &image,
            ));
        }
        if label.rank() != 1 {
            return Err(Error::shape("dataset labels", "[N]", &label));
        }
        check::float("dataset images", &image)?;
        if label.dtype() != DType::U32 {
            return Err(Error::dtype("dataset labels", "u32", &label));
        }
        let (images, labels) = (image.dims()[0], label.dims()[0]);
        if images != labels {
            return Err(DataError::Lengths { images, labels }.into());
        }
        memory::check("a list of labels", label.dims(), DType::U32, &Device::Cpu)?;
        let max_label = label.to_vec1()?.into_iter().max().unwrap_or(0);
        Ok(Self::with_max_label(image, label, max_label))
    }

    /// A dataset whose labels are known to be at most `max_label`: training on a GPU then never
    /// reads them back.
    fn with_max_label(image: Tensor, label: Tensor, max_label: u32) -> Self {
        check::assume_labels_up_to(max_label, &label);
        Self { image, label, max_label }
    }

    /// The images, 0 (black) to 1 (white): `[N, 28, 28, 1]`, f32, for MNIST.
    pub fn image(&self) -> &Tensor {
        &self.image
    }

    /// The class of each image, for MNIST the digit: `[N]`, u32.
    pub fn label(&self) -> &Tensor {
        &self.label
    }

    /// Checks that the dataset has batches of this size; `purpose` is for the message, as in
    /// "there is nothing to train on".
    ///
    /// # Errors
    /// [`Error::Empty`] if there are no examples; [`DataError::BatchSize`] unless
    /// `1 <= batch_size <= len`.
    pub fn check_batches(
        &self,
        purpose: &'static str,
        batch_size: usize,
    ) -> Result<()> {
        let examples = self.len();
        if examples == 0 {
            return Err(Error::Empty(purpose));
        }
        if batch_size == 0 || batch_size > examples {
            return Err(DataError::BatchSize { batch_size, examples }.into());
        }
        Ok(())
    }

    /// Checks that every label is below the number of classes.
    ///
    /// # Errors
    /// [`Error::Label`] for the first that is not.
    pub fn check_labels(&self, num_classes: usize) -> Result<()> {
        if (self.max_label as usize) < num_classes {
            return Ok(());
        }
        check::label_range(&self.label, num_classes)
    }

    /// Checks that every pixel is a finite number.
    ///
    /// # Errors
    /// [`DataError::Pixel`] for the first image with one that is not; [`Error::Tensor`] if the
    /// device fails.
    pub(crate) fn check_pixels(&self) -> Result<()> {
        if self.image.elem_count() == 0 {
            return Ok(());
        }
        // A zero for every finite pixel, a NaN for the others.
        let zeros =
            self.image.to_dtype(DType::F32)?.affine(0.0, 0.0)?.flatten_from(1)?;
        let sums: Vec<f32> = zeros.sum(1)?.to_vec1()?;
        match sums.iter().position(|sum| sum.is_nan()) {
            Some(index) => Err(DataError::Pixel { index }.into()),
            None => Ok(()),
        }
    }

    /// Names a bad label by its place in the whole dataset, not in a batch of it.
    pub(crate) fn locate(&self, error: Error) -> Error {
        match error {
            Error::Label { num_classes, .. } => {
                self.check_labels(num_classes).err().unwrap_or(error)
            }
            other => other,
        }
    }

    /// Checks that `images` images fit in memory.
    fn check_memory(
        &self,
        what: &'static str,
        images: usize,
        dtype: DType,
    ) -> Result<()> {
        let mut shape = self.image.dims().to_vec();
        shape[0] = images;
        memory::check(what, &shape, dtype, self.image.device())
    }

    /// The number of examples.
    pub fn len(&self) -> usize {
        self.label.elem_count()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The examples with these indices, in this order.
    ///
    /// # Errors
    /// [`Error::Tensor`] for an index that is not below [`len`](Dataset::len); [`Error::Memory`] if
    /// the batch does not fit in memory.
    pub fn batch(&self, indices: &[u32]) -> Result<Batch> {
        // Checked here: on a GPU an out-of-range index would make the device unusable.
        let examples = self.len();
        if let Some(index) = indices.iter().find(|&&index| index as usize >= examples) {
            return Err(Error::Tensor(format!(
                "index {index} is not below the number of examples, {examples}"
            )));
        }
        self.check_memory("a batch", indices.len(), self.image.dtype())?;
        let indices = Tensor::from_slice(indices, indices.len(), self.label.device())?;
        let image = self.image.index_select(&indices, 0)?;
        let label = self.label.index_select(&indices, 0)?;
        Ok(Self::with_max_label(image, label, self.max_label))
    }

    /// The `len` examples starting at `start`.
    ///
    /// # Errors
    /// [`Error::Tensor`] if `start + len` exceeds the number of examples.
    pub fn slice(&self, start: usize, len: usize) -> Result<Batch> {
        let (image, label) =
            (self.image.narrow(0, start, len)?, self.label.narrow(0, start, len)?);
        Ok(Self::with_max_label(image, label, self.max_label))
    }

    /// The same labels with other images, such as varied ones.
    ///
    /// # Errors
    /// Those of [`new`](Dataset::new).
    pub fn with_image(&self, image: Tensor) -> Result<Dataset> {
        Dataset::new(image, self.label.clone())
    }

    /// The mean of the metrics over all examples, evaluated in batches of 100, or 2,000 on a GPU:
    /// all at once would take much memory.
    ///
    /// # Errors
    /// [`Error::Empty`] if there are no examples; those of `eval_step`. A bad label is named by its
    /// place in the dataset.
    pub fn mean_over_batches(
        &self,
        mut eval_step: impl FnMut(&Batch) -> Result<BatchMetrics>,
    ) -> Result<Metrics> {
        let (mut batch_metrics, mut sizes) = (Vec::new(), Vec::new());
        for batch in self.eval_batches("evaluate on")? {
            let batch = batch?;
            batch_metrics.push(eval_step(&batch).map_err(|error| self.locate(error))?);
            sizes.push(batch.len());
        }
        let batch_metrics = BatchMetrics::get_all(&batch_metrics);
        let batch_metrics = batch_metrics.map_err(|error| self.locate(error))?;
        Metrics::weighted_mean(batch_metrics.into_iter().zip(sizes))
    }

    /// The examples in order, in batches for evaluation; the last one may be smaller. `purpose` is
    /// that of [`check_batches`](Dataset::check_batches).
    pub(crate) fn eval_batches(
        &self,
        purpose: &'static str,
    ) -> Result<impl Iterator<Item = Result<Batch>>> {
        let size =
            if self.image.device().is_cpu() { EVAL_BATCH } else { EVAL_BATCH_ON_GPU };
        let size = size.min(self.len());
        self.check_batches(purpose, size)?;
        let starts = (0..self.len()).step_by(size);
        Ok(starts.map(move |start| self.slice(start, size.min(self.len() - start))))
    }

    /// The dataset with its images converted to another float type.
    ///
    /// # Errors
    /// [`Error::DType`] for other types; [`Error::Tensor`] if the device does not support the
    /// conversion; [`Error::Memory`] if the images do not fit in memory.
    pub fn to_dtype(&self, dtype: DType) -> Result<Dataset> {
        self.check_memory("a dataset", self.len(), dtype)?;
        let image = self.image.to_dtype(dtype)?;
        check::float("dataset images", &image)?;
        Ok(Self::with_max_label(image, self.label.clone(), self.max_label))
    }
}

/// The MNIST training set and test set, on `device`.
///
/// The files come with the project, in its folder `data`; the environment variable
/// `MNIST_DATA_DIR` names another folder. Each may be gzipped or not, be named
/// `train-images-idx3-ubyte` or `train-images.idx3-ubyte`, and lie in a folder below, such as
/// torchvision's `MNIST/raw`. Their SHA-256 sums are checked before they are parsed.
///
/// The parser reads temporary copies. They take 55 MB in the folder for temporary files (`TMPDIR`),
/// or, if that does not take them, in the folder of the data.
///
/// With the cargo feature `download`, missing files are downloaded once, from public mirrors, to
/// the user's cache folder.
///
/// # Shapes
/// - training set: images `[60000, 28, 28, 1]`, f32, 0 to 1; labels `[60000]`, u32
/// - test set: images `[10000, 28, 28, 1]`, labels `[10000]`
///
/// candle's `/ 255.0` multiplies by the f32 nearest to 1/255. That is what XLA makes of the
/// tutorial's `/ 255.0`, too, so images are the tutorial's to the bit.
///
/// # Errors
/// [`DataError::Missing`], [`DataError::Damaged`] and [`DataError::OtherDataset`] name the file and
/// say what to do; [`DataError::Copies`] if neither folder takes the copies;
/// [`DataError::Download`] says how each mirror responded.
///
/// # Source
/// `get_datasets` of the Flax tutorial. The images: Y. LeCun, C. Cortes, C. J. C. Burges,
/// *The MNIST database of handwritten digits*.
pub fn get_datasets(device: &Device) -> Result<(Dataset, Dataset)> {
    let [train, test] = load_mnist(device)?; // pixels from 0 (black) to 255 (white)
    let train_image = (train.image.to_dtype(DType::F32)? / 255.0)?;
    let test_image = (test.image.to_dtype(DType::F32)? / 255.0)?;
    let train_ds = Dataset::new(train_image, train.label)?;
    let test_ds = Dataset::new(test_image, test.label)?;
    Ok((train_ds, test_ds))
}

/// Images of bytes with their labels, as they are in MNIST's files.
#[derive(Debug, Clone)]
pub struct Bytes {
    /// 0 (black) to 255 (white): `[N, 28, 28, 1]`, u8.
    pub image: Tensor,
    /// The class of each image: `[N]`, u32.
    pub label: Tensor,
}

/// The training set and the test set of MNIST as they are in its files, on `device`.
///
/// # Errors
/// Those of [`get_datasets`], which says where the files are looked for.
pub fn load_mnist(device: &Device) -> Result<[Bytes; 2]> {
    find(&files::MNIST, &Path::new(env!("CARGO_MANIFEST_DIR")).join("../data"), device)
}

/// [`get_datasets`] from another folder.
///
/// # Errors
/// Those of [`get_datasets`], except [`DataError::Download`].
pub fn get_datasets_from(
    dir: impl AsRef<Path>,
    device: &Device,
) -> Result<(Dataset, Dataset)> {
    to_datasets(load(&files::MNIST, dir.as_ref(), device)?)
}

/// The Fashion-MNIST training set and test set, on `device`: sizes and number of classes are those
/// of MNIST, but clothes are harder to tell apart. [`FASHION_CLASSES`] has the class names.
///
/// Debian's package `dataset-fashion-mnist` installs the files; the environment variable
/// `FASHION_MNIST_DATA_DIR` names another folder. With the cargo feature `download`, missing files
/// are downloaded once, from public mirrors, to the user's cache folder.
///
/// # Shapes
/// Those of [`get_datasets`].
///
/// # Errors
/// Those of [`get_datasets`].
///
/// # Source
/// H. Xiao, K. Rasul, R. Vollgraf, *Fashion-MNIST: a novel image dataset for benchmarking machine
/// learning algorithms*, 2017.
pub fn get_fashion_datasets(device: &Device) -> Result<(Dataset, Dataset)> {
    let folder = Path::new("/usr/share/datasets/fashion-mnist");
    to_datasets(find(&files::FASHION_MNIST, folder, device)?)
}

/// The class names of Fashion-MNIST, by label.
pub const FASHION_CLASSES: [&str; 10] = [
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
    "bag", "boot",
];

/// Loads a dataset from the folder that its environment variable names, from `folder`, or from the
/// cache of downloads.
fn find(
    dataset: &files::DatasetFiles,
    folder: &Path,
    device: &Device,
) -> Result<[Bytes; 2]> {
    if let Some(dir) = std::env::var_os(dataset.variable).filter(|dir| !dir.is_empty())
    {
        return load(dataset, dir.as_ref(), device);
    }
    match load(dataset, folder, device) {
        #[cfg(feature = "download")]
        Err(error)
            if matches!(error.downcast_ref(), Some(DataError::Missing { .. })) =>
        {
            load(dataset, &download::cached_files(dataset)?, device)
        }
        result => result,
    }
}

fn load(
    dataset: &files::DatasetFiles,
    dir: &Path,
    device: &Device,
) -> Result<[Bytes; 2]> {
    let Mnist { trn_img, trn_lbl, tst_img, tst_lbl, .. } = files::read(dataset, dir)?;
    let tensors = |images: Vec<u8>, labels: &[u8]| -> Result<Bytes> {
        let labels = ArrayView1::from(labels).mapv(u32::from);
        let (labels, _) = labels.into_raw_vec_and_offset();
        let count = labels.len();
        let image = Tensor::from_vec(images, (count, 28, 28, 1), device)?;
        Ok(Bytes { image, label: Tensor::from_vec(labels, count, device)? })
    };
    Ok([tensors(trn_img, &trn_lbl)?, tensors(tst_img, &tst_lbl)?])
}

/// Makes numbers from 0 to 1 of the bytes, as [`get_datasets`] does.
fn to_datasets(bytes: [Bytes; 2]) -> Result<(Dataset, Dataset)> {
    let [train, test] = bytes.map(|Bytes { image, label }| {
        Dataset::new((image.to_dtype(DType::F32)? / 255.0)?, label)
    });
    Ok((train?, test?))
}
