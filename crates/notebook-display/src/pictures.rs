//! Pictures in rows with captions: what the network sees, and what it makes of it.

use crate::figure::{Chart, Figure};
use crate::scene::{
    self, Anchor, Colour, GRID, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit, text_width,
};
use crate::error::{Error, Result};

/// One grey picture with its caption.
///
/// # Examples
///
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
    greys: Vec<u8>,
    width: usize,
    caption: String,
    verdict: Option<bool>,
}

impl Picture {
    /// A picture of `height` rows of `width` pixels each, from 0.0, black, to 1.0, white.
    ///
    /// # Errors
    ///
    /// [`Error::Figure`] if the number of pixels is not `height * width`, if a side is 0 or above
    /// 512, or if a pixel is not a number. Values outside the range count as black or white.
    pub fn new(pixels: &[f32], height: usize, width: usize) -> Result<Self> {
        if !(1..=512).contains(&height) || !(1..=512).contains(&width) {
            let reason = format!("a picture of {height} × {width} pixels: 1 to 512 can be drawn");
            return Err(Error::Figure(reason));
        }
        if pixels.len() != height * width {
            let (found, expected) = (pixels.len(), height * width);
            let reason = format!("{height} × {width} pixels are {expected} values, not {found}");
            return Err(Error::Figure(reason));
        }
        if let Some(index) = pixels.iter().position(|pixel| pixel.is_nan()) {
            let (row, column) = (index / width, index % width);
            let reason = format!("the pixel in row {row}, column {column} is not a number");
            return Err(Error::Figure(reason));
        }
        let greys = pixels.iter().map(|pixel| (pixel.clamp(0.0, 1.0) * 15.0).round() as u8);
        Ok(Self { greys: greys.collect(), width, caption: String::new(), verdict: None })
    }

    /// The same picture with a text below it.
    pub fn caption(mut self, caption: impl std::fmt::Display) -> Self {
        self.caption = caption.to_string();
        self
    }

    /// The same picture, marked as right (✓, thin frame) or wrong (✗, thick frame, bold caption).
    pub fn verdict(mut self, right: bool) -> Self {
        self.verdict = Some(right);
        self
    }

    fn height(&self) -> usize {
        self.greys.len() / self.width
    }
}

/// Draws pictures in rows, with their captions.
///
/// # Errors
///
/// [`Error::Figure`] without pictures and for more than 144.
pub fn picture_grid(title: &str, pictures: &[Picture]) -> Result<Figure> {
    if pictures.is_empty() || pictures.len() > 144 {
        let count = pictures.len();
        let reason = format!("`{title}`: {count} pictures given, 1 to 144 can be drawn");
        return Err(Error::Figure(reason));
    }
    Figure::new(Grid { title: title.to_owned(), pictures: pictures.to_vec() })
}

#[derive(Debug)]
struct Grid {
    title: String,
    pictures: Vec<Picture>,
}

const CAPTION: i32 = 20 * PX;
/// Pictures are no larger than this, unless they stand alone.
const SIDE: i32 = 112 * PX;
const RIGHT: Colour = PALETTE[2];
const WRONG: Colour = PALETTE[1];

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
        let most = if columns == 1 { 2 * SIDE } else { SIDE };
        let side = ((width - 2 * PADDING + gap) / columns - gap).min(most);
        let caption = if self.pictures.iter().all(Picture::is_bare) { 0 } else { CAPTION };
        let (across, down) = (side + gap, side + caption + gap);
        let top = scene.title(&self.title) + 4 * PX;
        for (picture, index) in self.pictures.iter().zip(0..) {
            let at = (PADDING + index % columns * across, top + index / columns * down);
            picture.draw(&mut scene, at, side, side + gap / 2);
        }
        let rows = (self.pictures.len() as i32 + columns - 1) / columns;
        scene.height = top + rows * down - gap + PADDING;
        scene.crop(PADDING + columns * across - gap, &self.title);
        Ok(scene)
    }
}

impl Grid {
    /// One row for a few pictures, else a grid a little wider than high, its rows full if possible.
    fn columns(&self) -> usize {
        match self.pictures.len() {
            few @ 0..=5 => few.max(1),
            many => {
                let least = ((many as f64).sqrt().ceil() as usize).max(5);
                let mut columns = least..=(least + 3).min(12);
                columns.find(|columns| many % columns == 0).unwrap_or(least)
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
        // Whole CSS pixels are sharpest, halves still even.
        let even = if pixel >= 2 * PX { PX } else { PX / 2 };
        let pixel = if pixel >= even { pixel / even * even } else { pixel };
        let size = (width * pixel, height * pixel);
        let at = (at.0 + (side - size.0) / 2, at.1 + (side - size.1) / 2);
        let (greys, width) = (self.greys.clone(), self.width);
        scene.shapes.push(Shape::Picture(scene::Picture { at, pixel, width, greys }));
        self.frame(scene, at, size);
        self.write_caption(scene, (at.0 + size.0 / 2, at.1 + size.1), caption_width);
    }

    fn frame(&self, scene: &mut Scene, at: (i32, i32), size: (i32, i32)) {
        let (colour, width) = match self.verdict {
            None => (GRID, PX),
            Some(true) => (RIGHT, PX),
            Some(false) => (WRONG, 3 * PX),
        };
        let outset = width / 2;
        let corner = (at.0 - outset, at.1 - outset);
        scene.outline(corner, (size.0 + width, size.1 + width), colour, width);
    }

    /// The mark of the verdict and the caption, centred together below the picture.
    fn write_caption(&self, scene: &mut Scene, (middle, bottom): (i32, i32), room: i32) {
        const MARK: i32 = 13 * PX;
        let bold = self.verdict == Some(false);
        let mark = if self.verdict.is_some() { MARK } else { 0 };
        let fits = |size: &i32| text_width(&self.caption, *size, bold) <= room - mark;
        let size = [TEXT, 10 * PX, 9 * PX].into_iter().find(fits).unwrap_or(9 * PX);
        let text = fit(&self.caption, room - mark, size, bold);
        let width = mark + text_width(&text, size, bold);
        let at = (middle - width / 2, bottom + CAPTION / 2 + 2 * PX);
        match self.verdict {
            Some(true) => tick(scene, at),
            Some(false) => cross(scene, at),
            None => {}
        }
        let at = (at.0 + mark, at.1);
        scene.text(Text { bold, size, ..Text::new(&text, at, Anchor::Start) }.centred());
    }
}

/// ✓ as two strokes: no font is needed.
fn tick(scene: &mut Scene, (x, y): (i32, i32)) {
    let points = vec![(x, y), (x + 35, y + 35), (x + 95, y - 40)];
    scene.shapes.push(Shape::Line { points, stroke: RIGHT, width: 2 * PX, dash: &[] });
}

/// ✗ as two strokes.
fn cross(scene: &mut Scene, (x, y): (i32, i32)) {
    for (from, to) in [(-40, 40), (40, -40)] {
        let points = vec![(x + 5, y + from), (x + 85, y + to)];
        scene.shapes.push(Shape::Line { points, stroke: WRONG, width: 25, dash: &[] });
    }
}
