//! Event files for [TensorBoard](https://www.tensorflow.org/tensorboard): curves and images to watch
//! while training runs, and to lay beside those of other runs.
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
//! `tensorboard --logdir runs` then shows every folder below `runs` as a run.
//!
//! An event file is a sequence of records, each a `tensorflow.Event` in protocol buffers between its
//! length and its checksum (`tensorflow/core/util/event.proto`, `tensorflow/core/lib/io/record_writer`).

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use candle_core::{DType, Device, Tensor};
use linen::{Error, Result};
use prost::{Message, Oneof};

/// Writes scalars and images into an event file of its own.
///
/// Each is on its way to the disk when the call returns: an interrupt loses nothing.
///
/// # Source
/// `flax.metrics.tensorboard.SummaryWriter`.
#[derive(Debug)]
pub struct SummaryWriter {
    file: File,
    path: PathBuf,
}

impl SummaryWriter {
    /// A writer with a new file in this folder, which is made if it is not there.
    ///
    /// TensorBoard shows a folder as one run: another training should get another folder.
    ///
    /// # Errors
    /// [`Error::Save`] if the folder or the file cannot be made.
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
                // Another writer of the same second.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::save(path)(error)),
            }
        }
        unreachable!("a folder with every name in it")
    }

    /// Writes a number: a point of the curve that `tag` names, such as `loss/train`.
    ///
    /// # Errors
    /// [`Error::Save`] if the disk is full.
    pub fn scalar(&mut self, tag: &str, value: impl Into<f64>, step: usize) -> Result<()> {
        self.summary(tag, Content::SimpleValue(value.into() as f32), step)
    }

    /// Writes an image.
    ///
    /// # Shapes
    /// - `image`: `[height, width, 1]` (grey) or `[height, width, 3]` (red, green, blue), any float
    ///   type, 0 (dark) to 1 (bright); what lies outside is clipped
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::DType`] for anything else; [`Error::Save`] if the disk is full.
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

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An event between its length and its checksum, each of them checked by itself.
fn record(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    let (length_sum, event_sum) = (masked_crc(&length), masked_crc(&event));
    [&length[..], &length_sum, &event, &event_sum].concat()
}

/// The checksum of a record: sums of data that holds sums would be weak, so it is masked.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

// What is used of TensorFlow's messages, under the numbers of their definitions.

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
    /// How many channels.
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
                return Err(Error::Shape {
                    what: "image for TensorBoard",
                    expected: "[height, width, 1] or [height, width, 3]".into(),
                    found: image.dims().to_vec(),
                });
            }
        };
        if !image.dtype().is_float() {
            let found = image.dtype().as_str().into();
            return Err(Error::DType { what: "image for TensorBoard", expected: "f32", found });
        }
        let values = image.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?;
        let bytes = values.to_vec1::<f32>()?.into_iter();
        let bytes: Vec<u8> = bytes.map(|value| (value * 255.0).round() as u8).collect();
        let mut encoded = Vec::new();
        let mut encoder = png::Encoder::new(&mut encoded, width as u32, height as u32);
        encoder.set_color(color);
        let written = encoder.write_header().and_then(|mut png| png.write_image_data(&bytes));
        written.map_err(|error| Error::Tensor(format!("the image cannot be a PNG: {error}")))?;
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

    /// TensorBoard itself wrote the file, see `tests/golden`.
    #[test]
    fn records_are_those_of_tensorboard_to_the_byte() {
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
