//! Images and labels as MNIST stores them.

use crate::error::{Error, Result};
use crate::network::CLASSES;

/// Pixels per image.
pub const IMAGE_LEN: usize = 28 * 28;

/// Bytes before the images and before the labels in their files.
const IMAGES_HEADER: usize = 16;
const LABELS_HEADER: usize = 8;

/// Images of 28 × 28 bytes with their labels: the content of two IDX files.
#[derive(Debug)]
pub struct Dataset {
    images: Box<[u8]>,
    labels: Box<[u8]>,
}

impl Dataset {
    /// The data set in the content of an IDX file of images and one of labels.
    ///
    /// # Errors
    /// [`Error::Dataset`] if they are not such files, do not belong together, or have a label
    /// above 9.
    pub fn new(images: Box<[u8]>, labels: Box<[u8]>) -> Result<Self> {
        let header = |file: &[u8], words: &[u32]| {
            let bytes = words.iter().flat_map(|word| word.to_be_bytes());
            file.len() >= 4 * words.len() && bytes.eq(file[..4 * words.len()].iter().copied())
        };
        let len = labels.len().saturating_sub(LABELS_HEADER);
        if !header(&labels, &[0x801, len as u32]) {
            return Err(Error::Dataset("the file of labels is not one"));
        }
        if !header(&images, &[0x803, len as u32, 28, 28])
            || images.len() != IMAGES_HEADER + len * IMAGE_LEN
        {
            return Err(Error::Dataset("the file of images does not fit that of labels"));
        }
        if labels[LABELS_HEADER..].iter().any(|label| usize::from(*label) >= CLASSES) {
            return Err(Error::Dataset("a label is above 9"));
        }
        Ok(Self { images, labels })
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.labels().len()
    }

    /// Whether there are no images.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The label of every image.
    pub fn labels(&self) -> &[u8] {
        &self.labels[LABELS_HEADER..]
    }

    /// The pixels of an image, row by row, from 0 (black) to 255 (white).
    ///
    /// # Panics
    /// If there is no such image.
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[IMAGES_HEADER + index * IMAGE_LEN..][..IMAGE_LEN]
    }

    /// Replaces the content of `images` and `labels` by those of some images, as the network takes
    /// them.
    pub(crate) fn gather(
        &self,
        indices: impl Iterator<Item = usize>,
        images: &mut Vec<f32>,
        labels: &mut Vec<u32>,
    ) {
        // What XLA makes of the tutorial's division by 255.
        const SCALE: f32 = 1.0 / 255.0;
        images.clear();
        labels.clear();
        for index in indices {
            images.extend(self.image(index).iter().map(|pixel| f32::from(*pixel) * SCALE));
            labels.push(u32::from(self.labels()[index]));
        }
    }
}
