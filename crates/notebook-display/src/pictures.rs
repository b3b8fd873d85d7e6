//! Pictures in rows with captions, such as network inputs, predictions and kernels.

use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::picture_layout;
use crate::scene::Scene;

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

/// Draws pictures in rows, with their captions.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 144 pictures.
pub fn picture_grid(title: &str, pictures: &[Picture]) -> Result<Figure> {
    let columns = columns(pictures.len());
    let rows = pictures.chunks(columns).map(|row| (String::new(), row.to_vec()));
    draw(title, rows.collect())
}

/// Draws rows of pictures, each with its name on the left.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 144 pictures, at most 24 in a row.
///
/// # Examples
/// ```
/// # use notebook_display::{Picture, picture_rows};
/// let image = Picture::new(&[0.0, 0.2, 0.4, 1.0], 2, 2)?;
/// let maps = [Picture::new(&[0.9], 1, 1)?, Picture::new(&[0.1], 1, 1)?];
/// let figure = picture_rows("Layers", &[("input", vec![image]), ("pool", maps.to_vec())])?;
/// assert_eq!(figure.text(), "Layers: 3 pictures\n  input: 1 picture\n  pool: 2 pictures");
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn picture_rows(title: &str, rows: &[(&str, Vec<Picture>)]) -> Result<Figure> {
    let rows = rows.iter().map(|(name, pictures)| ((*name).to_owned(), pictures.clone()));
    draw(title, rows.collect())
}

fn draw(title: &str, rows: Vec<(String, Vec<Picture>)>) -> Result<Figure> {
    let refuse = |reason| Err(Error::Figure(format!("`{title}`: {reason}")));
    let count: usize = rows.iter().map(|(_, pictures)| pictures.len()).sum();
    if count == 0 || count > 144 {
        return refuse(format!("expected 1 to 144 pictures, found {count}"));
    }
    if let Some((name, pictures)) = rows.iter().find(|(_, pictures)| pictures.len() > 24) {
        return refuse(format!("row `{name}` has {} pictures, more than 24", pictures.len()));
    }
    Figure::new(Grid { title: title.to_owned(), rows })
}

/// One row for up to five pictures; a grid slightly wider than high for more, with full rows if
/// possible.
fn columns(count: usize) -> usize {
    match count {
        0..=5 => count.max(1),
        _ => {
            let min = ((count as f64).sqrt().ceil() as usize).max(5);
            let mut candidates = min..=(min + 3).min(12);
            candidates.find(|columns| count.is_multiple_of(*columns)).unwrap_or(min)
        }
    }
}

/// Pictures in rows with names, which may be empty.
#[derive(Debug)]
pub(crate) struct Grid {
    pub title: String,
    pub rows: Vec<(String, Vec<Picture>)>,
}

impl Grid {
    pub fn pictures(&self) -> impl Iterator<Item = &Picture> {
        self.rows.iter().flat_map(|(_, pictures)| pictures)
    }

    /// The largest magnitude of the signed pictures; `None` if there are none.
    pub fn largest(&self) -> Option<f32> {
        let signed = self.pictures().filter(|picture| picture.signed);
        let values = signed.flat_map(|picture| &picture.pixels);
        values.map(|value| value.abs()).reduce(f32::max)
    }
}

impl Chart for Grid {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let mut text = format!("{}: {}", self.title, counted(self.pictures().count()));
        for (name, pictures) in &self.rows {
            let captions = pictures.iter().map(|picture| match picture.verdict {
                Some(true) => format!("{} (right)", picture.caption),
                Some(false) => format!("{} (wrong)", picture.caption),
                None => picture.caption.clone(),
            });
            let captions: Vec<_> = captions.collect();
            let has_captions = captions.iter().any(|caption| !caption.is_empty());
            let captions = if has_captions { captions.join(", ") } else { counted(pictures.len()) };
            match name.as_str() {
                "" if !has_captions => {}
                "" => text += &format!("\n  {captions}"),
                _ => text += &format!("\n  {name}: {captions}"),
            }
        }
        if let Some(largest) = self.largest() {
            let largest = picture_layout::scale_end(largest);
            text += &format!("\n  from -{largest} (blue) through 0 (white) to {largest} (orange)");
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        Ok(picture_layout::scene(self, width))
    }
}

fn counted(pictures: usize) -> String {
    let plural = if pictures == 1 { "" } else { "s" };
    format!("{pictures} picture{plural}")
}
