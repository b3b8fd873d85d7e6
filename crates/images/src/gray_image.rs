//! Grayscale pictures as plain numbers, and how they are cut, resized and filtered.

use std::ops::Range;

use candle_core::{Device, Tensor};
use linen::Result;

/// A grayscale picture, row by row.
pub(crate) struct GrayImage {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) pixels: Vec<f32>,
}

impl GrayImage {
    /// A tensor of shape `[1, H, W, 1]`.
    pub(crate) fn into_tensor(self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.pixels, (1, self.height, self.width, 1), device)?)
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.pixels.chunks_exact(self.width)
    }

    pub(crate) fn longer_side(&self) -> usize {
        self.height.max(self.width)
    }

    /// The greatest pixel.
    pub(crate) fn max(&self) -> f32 {
        self.pixels.iter().copied().fold(f32::MIN, f32::max)
    }

    /// The picture with each pixel changed.
    pub(crate) fn map(&self, change: impl Fn(f32) -> f32) -> GrayImage {
        GrayImage { pixels: self.pixels.iter().map(|pixel| change(*pixel)).collect(), ..*self }
    }

    /// Each pixel combined with that of another picture of the same size.
    pub(crate) fn zip_with(&self, other: &GrayImage, combine: impl Fn(f32, f32) -> f32) -> Self {
        let pairs = self.pixels.iter().zip(&other.pixels);
        GrayImage { pixels: pairs.map(|(a, b)| combine(*a, *b)).collect(), ..*self }
    }

    fn transposed(&self) -> GrayImage {
        let column = |x: usize| self.rows().map(move |row| row[x]);
        let pixels = (0..self.width).flat_map(column).collect();
        GrayImage { height: self.width, width: self.height, pixels }
    }

    pub(crate) fn cropped(&self, rows: Range<usize>, columns: Range<usize>) -> GrayImage {
        let (height, width) = (rows.len(), columns.len());
        let kept = self.rows().skip(rows.start).take(height);
        let pixels = kept.flat_map(|row| &row[columns.clone()]).copied().collect();
        GrayImage { height, width, pixels }
    }

    /// Adds a margin that repeats the nearest pixels.
    pub(crate) fn padded(&self, margin: usize) -> GrayImage {
        let nearest = |at: usize, length: usize| at.saturating_sub(margin).min(length - 1);
        let (height, width) = (self.height + 2 * margin, self.width + 2 * margin);
        let pixel = |index: usize| {
            let (y, x) = (nearest(index / width, self.height), nearest(index % width, self.width));
            self.pixels[y * self.width + x]
        };
        GrayImage { height, width, pixels: (0..height * width).map(pixel).collect() }
    }

    /// Resizes so that the longer side has `side` pixels; each pixel is the mean of the area it
    /// covers.
    pub(crate) fn fit(&self, side: usize) -> GrayImage {
        let scale = side as f64 / self.longer_side() as f64;
        let scaled = |length: usize| ((length as f64 * scale).round() as usize).max(1);
        let narrowed = self.resize_rows(scaled(self.width)).transposed();
        narrowed.resize_rows(scaled(self.height)).transposed()
    }

    fn resize_rows(&self, width: usize) -> GrayImage {
        let ratio = self.width as f64 / width as f64;
        let covered = (0..width).map(|x| (x as f64 * ratio, (x + 1) as f64 * ratio));
        let pixels = self.rows().flat_map(|row| {
            covered.clone().map(|(start, end)| {
                let sources = start as usize..(end.ceil() as usize).min(row.len());
                let parts = sources.map(|x| {
                    let overlap = end.min((x + 1) as f64) - start.max(x as f64);
                    f64::from(row[x]) * overlap
                });
                (parts.sum::<f64>() / ratio) as f32
            })
        });
        GrayImage { width, pixels: pixels.collect(), ..*self }
    }

    /// The morphological closing (maximum, then minimum filter), which removes what is darker than
    /// its surroundings and narrower than `2 * radius + 1` pixels.
    pub(crate) fn closed(&self, radius: usize) -> GrayImage {
        self.filtered(radius, f32::max).filtered(radius, f32::min)
    }

    /// Replaces each pixel by the minimum or maximum of a square around it.
    pub(crate) fn filtered(&self, radius: usize, reduce: fn(f32, f32) -> f32) -> GrayImage {
        let pass = |gray: &GrayImage| gray.filter_rows(radius, reduce).transposed();
        pass(&pass(self))
    }

    /// Minimum or maximum filter along the rows, with edge pixels repeated beyond the edges.
    fn filter_rows(&self, radius: usize, reduce: fn(f32, f32) -> f32) -> GrayImage {
        let window = 2 * radius + 1;
        let pixels = self.rows().flat_map(|row| {
            let edge = |pixel: f32| std::iter::repeat_n(pixel, radius);
            let padded = edge(row[0]).chain(row.iter().copied()).chain(edge(row[row.len() - 1]));
            let mut padded: Vec<f32> = padded.collect();
            // Adjacent or overlapping windows of one size combine into a larger window.
            let mut combine = |shift: usize| {
                padded = padded.iter().zip(&padded[shift..]).map(|(a, b)| reduce(*a, *b)).collect();
            };
            let mut size = 1;
            while 2 * size <= window {
                combine(size);
                size *= 2;
            }
            combine(window - size);
            padded
        });
        GrayImage { pixels: pixels.collect(), ..*self }
    }

    /// The median of each pixel's surroundings, a square within the picture.
    pub(crate) fn medians(&self, radius: usize) -> GrayImage {
        let around = |at: usize, len: usize| at.saturating_sub(radius)..(at + radius + 1).min(len);
        let pixel = |index: usize| {
            let rows = around(index / self.width, self.height);
            let columns = around(index % self.width, self.width);
            median(self.cropped(rows, columns).pixels)
        };
        GrayImage { pixels: (0..self.pixels.len()).map(pixel).collect(), ..*self }
    }
}

/// The median; of an even number of values the greater of the middle two.
pub(crate) fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, f32::total_cmp).1
}
