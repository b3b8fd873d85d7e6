//! Event files for [TensorBoard](https://www.tensorflow.org/tensorboard), which shows curves and
//! images during training and compares runs.
//!
//! ```
//! use take_away::SummaryWriter;
//! # let folder = tempfile::tempdir().unwrap();
//! # let folder = folder.path().join("runs/first");
//!
//! let mut log = SummaryWriter::new(folder)?;
//! for (step, loss) in [2.3, 0.4, 0.2].into_iter().enumerate() {
//!     log.scalar("loss/train", loss, step)?;
//! }
//! # Ok::<(), linen::Error>(())
//! ```
//!
//! `tensorboard --logdir runs` then shows every folder in `runs` as a run.
//!
//! An event file is a sequence of records: a `tensorflow.Event` message with its length and
//! checksums (`tensorflow/core/util/event.proto`, `tensorflow/core/lib/io/record_writer`).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::{DType, Device, Tensor};
use linen::{Error, Result, check};
use prost::{Message, Oneof};

/// Writes scalars and images to a new event file.
///
/// Each call hands its record to the operating system before it returns, so that an interrupt loses
/// nothing.
///
/// # Source
/// `flax.metrics.tensorboard.SummaryWriter`.
#[derive(Debug)]
pub struct SummaryWriter {
    file: File,
    path: PathBuf,
}

impl SummaryWriter {
    /// Creates a file in this folder, which is created if it is missing.
    ///
    /// TensorBoard shows a folder as one run, so use a new folder for each training run.
    ///
    /// # Errors
    /// [`Error::Save`] if the folder or the file cannot be created.
    pub fn new(log_dir: impl Into<PathBuf>) -> Result<Self> {
        let folder = log_dir.into();
        std::fs::create_dir_all(&folder).map_err(Error::save(&folder))?;
        let seconds = now() as u64;
        let names = (0..).map(|number| format!("events.out.tfevents.{seconds:010}.{number}"));
        for path in names.map(|name| folder.join(name)) {
            match File::create_new(&path) {
                Ok(file) => {
                    let mut writer = SummaryWriter { file, path };
                    writer.write(0, What::FileVersion("brain.Event:2".into()))?;
                    return Ok(writer);
                }
                // From another writer in the same second.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::save(path)(error)),
            }
        }
        unreachable!("some number is unused")
    }

    /// Writes a point of the curve `tag`, such as `loss/train`.
    ///
    /// # Errors
    /// [`Error::Save`] if the disk is full.
    pub fn scalar(&mut self, tag: &str, value: impl Into<f64>, step: usize) -> Result<()> {
        self.summary(tag, Content::SimpleValue(value.into() as f32), step)
    }

    /// Writes an image.
    ///
    /// # Shapes
    /// - `image`: `[height, width, 1]` (grayscale) or `[height, width, 3]` (RGB), any float type,
    ///   0 (dark) to 1 (bright); other values are clipped
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::DType`] for other tensors; [`Error::Save`] if the disk is
    /// full.
    pub fn image(&mut self, tag: &str, image: &Tensor, step: usize) -> Result<()> {
        self.summary(tag, Content::Image(Image::new(image)?), step)
    }

    fn summary(&mut self, tag: &str, content: Content, step: usize) -> Result<()> {
        let value = Value { tag: tag.into(), content: Some(content) };
        self.write(step as i64, What::Summary(Summary { value: vec![value] }))
    }

    fn write(&mut self, step: i64, what: What) -> Result<()> {
        let record = record(&Event { wall_time: now(), step, what: Some(what) });
        self.file.write_all(&record).map_err(Error::save(&self.path))
    }
}

/// Seconds since the Unix epoch.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Length, checksum of the length, event, checksum of the event.
fn record(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    let (length_sum, event_sum) = (masked_crc(&length), masked_crc(&event));
    [&length[..], &length_sum, &event, &event_sum].concat()
}

/// CRC-32C, masked because a CRC of data that contains CRCs would be weak.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

// The parts of TensorFlow's messages that are used here, with their original field numbers.

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(oneof = "Content", tags = "2, 4")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Content {
    #[prost(float, tag = "2")]
    SimpleValue(f32),
    #[prost(message, tag = "4")]
    Image(Image),
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(int32, tag = "1")]
    height: i32,
    #[prost(int32, tag = "2")]
    width: i32,
    /// Number of channels.
    #[prost(int32, tag = "3")]
    colorspace: i32,
    /// A PNG file.
    #[prost(bytes = "vec", tag = "4")]
    encoded_image_string: Vec<u8>,
}

impl Image {
    fn new(image: &Tensor) -> Result<Self> {
        let (height, width, color) = match *image.dims() {
            [height, width, 1] => (height, width, png::ColorType::Grayscale),
            [height, width, 3] => (height, width, png::ColorType::Rgb),
            _ => {
                let expected = "[height, width, 1] or [height, width, 3]";
                return Err(Error::shape("image for TensorBoard", expected, image));
            }
        };
        check::float("image for TensorBoard", image)?;
        let values = image.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?;
        let bytes = values.to_vec1::<f32>()?.into_iter();
        let bytes: Vec<u8> = bytes.map(|value| (value * 255.0).round() as u8).collect();
        let mut encoded = Vec::new();
        let mut encoder = png::Encoder::new(&mut encoded, width as u32, height as u32);
        encoder.set_color(color);
        let written = encoder.write_header().and_then(|mut png| png.write_image_data(&bytes));
        written
            .map_err(|error| Error::Tensor(format!("cannot encode the image as PNG: {error}")))?;
        Ok(Image {
            height: height as i32,
            width: width as i32,
            colorspace: color.samples() as i32,
            encoded_image_string: encoded,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TensorBoard wrote the reference file, see `tests/golden` in the repository.
    #[test]
    fn records_equal_those_of_tensorboard_byte_for_byte() {
        let version = Event {
            wall_time: 1.5,
            step: 0,
            what: Some(What::FileVersion("brain.Event:2".into())),
        };
        let event = |step, tag: &str, content| Event {
            wall_time: 2.25,
            step,
            what: Some(What::Summary(Summary {
                value: vec![Value { tag: tag.into(), content: Some(content) }],
            })),
        };
        let loss = event(3, "loss/train", Content::SimpleValue(0.125));
        let zero = event(0, "zero", Content::SimpleValue(0.0));
        let encoded_image_string = b"not a PNG".to_vec();
        let image = Image { height: 2, width: 3, colorspace: 1, encoded_image_string };
        let image = event(1 << 40, "digit", Content::Image(image));
        let written = [version, loss, zero, image].map(|event| record(&event)).concat();
        assert_eq!(written, include_bytes!("../tests/events.tfevents"));
    }
}
