//! A picture with its caption.

use crate::error::{Error, Result};

/// A picture of gray or signed pixels with a caption.
///
/// # Examples
/// ```
/// # use notebook_display::{Picture, picture_grid};
/// let dot = Picture::new(&[0.0, 0.0, 0.0, 1.0], 2, 2)?.caption("a dot").verdict(false);
/// let figure = picture_grid("Pictures", &[dot])?;
/// assert_eq!(figure.text(), "Pictures: 1 picture\n  a dot (wrong)");
/// # Ok::<(), notebook_display::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Picture {
    pub(crate) pixels: Vec<f32>,
    pub(crate) width: usize,
    /// Whether 0 is the middle of the colors.
    pub(crate) signed: bool,
    pub(crate) caption: String,
    pub(crate) verdict: Option<bool>,
}

impl Picture {
    /// A picture of `height` rows of `width` pixels each, from 0.0 (black) to 1.0 (white); values
    /// outside this range are clamped.
    ///
    /// # Errors
    /// [`Error::Figure`] if the number of pixels is not `height * width`, if a side is not 1 to 512
    /// pixels, or if a pixel is NaN.
    pub fn new(pixels: &[f32], height: usize, width: usize) -> Result<Self> {
        check(pixels, height, width)?;
        let pixels = pixels.iter().map(|pixel| pixel.clamp(0.0, 1.0)).collect();
        Ok(Self { pixels, width, signed: false, caption: String::new(), verdict: None })
    }

    /// A picture of signed values, such as the weights of a kernel: negative ones are blue, 0 is
    /// white, and positive ones are orange. All signed pictures of a figure share one scale.
    ///
    /// # Errors
    /// Those of [`Picture::new`], and [`Error::Figure`] for an infinite value.
    ///
    /// # Examples
    /// ```
    /// # use notebook_display::{Picture, picture_grid};
    /// let edge = Picture::signed(&[-0.5, 0.0, 0.5], 1, 3)?;
    /// let figure = picture_grid("A kernel", &[edge])?;
    /// assert!(figure.text().ends_with("from -0.5 (blue) through 0 (white) to 0.5 (orange)"));
    /// # Ok::<(), notebook_display::Error>(())
    /// ```
    pub fn signed(values: &[f32], height: usize, width: usize) -> Result<Self> {
        check(values, height, width)?;
        if let Some(value) = values.iter().find(|value| value.is_infinite()) {
            return Err(Error::Figure(format!("a signed picture has the value {value}")));
        }
        let pixels = values.to_vec();
        Ok(Self { pixels, width, signed: true, caption: String::new(), verdict: None })
    }

    /// Adds a caption below the picture.
    pub fn caption(mut self, caption: impl std::fmt::Display) -> Self {
        self.caption = caption.to_string();
        self
    }

    /// Marks the picture as right (✓, thin frame) or wrong (✗, thick frame, bold caption).
    pub fn verdict(mut self, right: bool) -> Self {
        self.verdict = Some(right);
        self
    }

    pub(crate) fn height(&self) -> usize {
        self.pixels.len() / self.width
    }
}

fn check(pixels: &[f32], height: usize, width: usize) -> Result<()> {
    if !(1..=512).contains(&height) || !(1..=512).contains(&width) {
        let reason = format!("a picture must be 1 to 512 pixels a side, not {height} × {width}");
        return Err(Error::Figure(reason));
    }
    if pixels.len() != height * width {
        let (found, expected) = (pixels.len(), height * width);
        let reason = format!("{height} × {width} pixels are {expected} values, not {found}");
        return Err(Error::Figure(reason));
    }
    if let Some(index) = pixels.iter().position(|pixel| pixel.is_nan()) {
        let (row, column) = (index / width, index % width);
        return Err(Error::Figure(format!("the pixel in row {row}, column {column} is NaN")));
    }
    Ok(())
}
