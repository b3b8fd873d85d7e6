//! Pictures in rows with captions, such as network inputs and predictions.

use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::scene::{
    self, Anchor, Color, GRID_COLOR, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit,
    text_width,
};

/// A grayscale picture with a caption.
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
    /// 0 is black, 15 is white.
    grays: Vec<u8>,
    width: usize,
    caption: String,
    verdict: Option<bool>,
}

impl Picture {
    /// A picture of `height` rows of `width` pixels each, from 0.0 (black) to 1.0 (white); values
    /// outside this range are clamped.
    ///
    /// # Errors
    /// [`Error::Figure`] if the number of pixels is not `height * width`, if a side is not 1 to 512
    /// pixels, or if a pixel is NaN.
    pub fn new(pixels: &[f32], height: usize, width: usize) -> Result<Self> {
        if !(1..=512).contains(&height) || !(1..=512).contains(&width) {
            let reason =
                format!("a picture must be 1 to 512 pixels a side, not {height} × {width}");
            return Err(Error::Figure(reason));
        }
        if pixels.len() != height * width {
            let (found, expected) = (pixels.len(), height * width);
            let reason = format!("{height} × {width} pixels are {expected} values, not {found}");
            return Err(Error::Figure(reason));
        }
        if let Some(index) = pixels.iter().position(|pixel| pixel.is_nan()) {
            let (row, column) = (index / width, index % width);
            let reason = format!("the pixel in row {row}, column {column} is NaN");
            return Err(Error::Figure(reason));
        }
        let grays = pixels.iter().map(|pixel| (pixel.clamp(0.0, 1.0) * 15.0).round() as u8);
        Ok(Self { grays: grays.collect(), width, caption: String::new(), verdict: None })
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

    fn height(&self) -> usize {
        self.grays.len() / self.width
    }
}

/// Draws pictures in rows, with their captions.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 144 pictures.
pub fn picture_grid(title: &str, pictures: &[Picture]) -> Result<Figure> {
    if pictures.is_empty() || pictures.len() > 144 {
        let count = pictures.len();
        let reason = format!("`{title}`: expected 1 to 144 pictures, found {count}");
        return Err(Error::Figure(reason));
    }
    Figure::new(Grid { title: title.to_owned(), pictures: pictures.to_vec() })
}

#[derive(Debug)]
struct Grid {
    title: String,
    pictures: Vec<Picture>,
}

const CAPTION_HEIGHT: i32 = 20 * PX;
/// Maximum side of a picture; twice that for a single picture.
const MAX_SIDE: i32 = 112 * PX;
const RIGHT_COLOR: Color = PALETTE[2];
const WRONG_COLOR: Color = PALETTE[1];

impl Chart for Grid {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let count = self.pictures.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut text = format!("{}: {count} picture{plural}", self.title);
        let captions = self.pictures.iter().map(|picture| match picture.verdict {
            Some(true) => format!("{} (right)", picture.caption),
            Some(false) => format!("{} (wrong)", picture.caption),
            None => picture.caption.clone(),
        });
        let captions: Vec<_> = captions.collect();
        for row in captions.chunks(self.columns()).filter(|row| row.iter().any(|c| !c.is_empty())) {
            text += &format!("\n  {}", row.join(", "));
        }
        text
    }

    fn draw(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let columns = self.columns() as i32;
        let gap = if columns > 6 { 6 * PX } else { 12 * PX };
        let max_side = if columns == 1 { 2 * MAX_SIDE } else { MAX_SIDE };
        let side = ((width - 2 * PADDING + gap) / columns - gap).min(max_side);
        let has_captions = !self.pictures.iter().all(Picture::is_bare);
        let caption = if has_captions { CAPTION_HEIGHT } else { 0 };
        let (column_step, row_step) = (side + gap, side + caption + gap);
        let top = scene.title(&self.title) + 4 * PX;
        for (picture, index) in self.pictures.iter().zip(0..) {
            let at = (PADDING + index % columns * column_step, top + index / columns * row_step);
            picture.draw(&mut scene, at, side, side + gap / 2);
        }
        let rows = (self.pictures.len() as i32 + columns - 1) / columns;
        scene.height = top + rows * row_step - gap + PADDING;
        scene.crop(PADDING + columns * column_step - gap, &self.title);
        Ok(scene)
    }
}

impl Grid {
    /// One row for up to five pictures; a grid slightly wider than high for more, with full rows if
    /// possible.
    fn columns(&self) -> usize {
        match self.pictures.len() {
            count @ 0..=5 => count.max(1),
            count => {
                let min = ((count as f64).sqrt().ceil() as usize).max(5);
                let mut candidates = min..=(min + 3).min(12);
                candidates.find(|columns| count % columns == 0).unwrap_or(min)
            }
        }
    }
}

impl Picture {
    fn is_bare(&self) -> bool {
        self.caption.is_empty() && self.verdict.is_none()
    }

    fn draw(&self, scene: &mut Scene, at: (i32, i32), side: i32, caption_width: i32) {
        let (width, height) = (self.width as i32, self.height() as i32);
        let pixel = (side / width.max(height)).max(1);
        // Rounded down to whole CSS pixels, which look sharp, or to halves, which look even.
        let unit = if pixel >= 2 * PX { PX } else { PX / 2 };
        let pixel = if pixel >= unit { pixel / unit * unit } else { pixel };
        let size = (width * pixel, height * pixel);
        let at = (at.0 + (side - size.0) / 2, at.1 + (side - size.1) / 2);
        let (grays, width) = (self.grays.clone(), self.width);
        scene.shapes.push(Shape::Picture(scene::Picture { at, pixel, width, grays }));
        self.draw_frame(scene, at, size);
        self.draw_caption(scene, (at.0 + size.0 / 2, at.1 + size.1), caption_width);
    }

    fn draw_frame(&self, scene: &mut Scene, at: (i32, i32), size: (i32, i32)) {
        let (color, width) = match self.verdict {
            None => (GRID_COLOR, PX),
            Some(true) => (RIGHT_COLOR, PX),
            Some(false) => (WRONG_COLOR, 3 * PX),
        };
        let outset = width / 2;
        let corner = (at.0 - outset, at.1 - outset);
        scene.outline(corner, (size.0 + width, size.1 + width), color, width);
    }

    /// Draws the sign of the verdict and the caption, centered below the picture.
    fn draw_caption(&self, scene: &mut Scene, (middle, bottom): (i32, i32), max_width: i32) {
        const SIGN_WIDTH: i32 = 13 * PX;
        let bold = self.verdict == Some(false);
        let sign = if self.verdict.is_some() { SIGN_WIDTH } else { 0 };
        let fits = |size: &i32| text_width(&self.caption, *size, bold) <= max_width - sign;
        let size = [TEXT, 10 * PX, 9 * PX].into_iter().find(fits).unwrap_or(9 * PX);
        let text = fit(&self.caption, max_width - sign, size, bold);
        let width = sign + text_width(&text, size, bold);
        let at = (middle - width / 2, bottom + CAPTION_HEIGHT / 2 + 2 * PX);
        match self.verdict {
            Some(true) => draw_check_mark(scene, at),
            Some(false) => draw_cross(scene, at),
            None => {}
        }
        let at = (at.0 + sign, at.1);
        scene.text(Text { bold, size, ..Text::new(&text, at, Anchor::Start) }.centered());
    }
}

/// Draws ✓ as strokes, because fonts may lack it.
fn draw_check_mark(scene: &mut Scene, (x, y): (i32, i32)) {
    let points = vec![(x, y), (x + 35, y + 35), (x + 95, y - 40)];
    scene.shapes.push(Shape::Line { points, stroke: RIGHT_COLOR, width: 2 * PX, dash: &[] });
}

/// Draws ✗ as two strokes.
fn draw_cross(scene: &mut Scene, (x, y): (i32, i32)) {
    for (from, to) in [(-40, 40), (40, -40)] {
        let points = vec![(x + 5, y + from), (x + 85, y + to)];
        scene.shapes.push(Shape::Line { points, stroke: WRONG_COLOR, width: 25, dash: &[] });
    }
}
