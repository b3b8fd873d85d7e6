//! Draws pictures in rows, with their captions and the scale of signed ones.

use crate::number::short;
use crate::picture::Picture;
use crate::raster::{self, Colors};
use crate::scene::{
    Anchor, Color, GRID_COLOR, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit, text_width,
};

const CAPTION_HEIGHT: i32 = 20 * PX;
/// Space between the captions of neighbors.
const CAPTION_GAP: i32 = 8 * PX;
const SIGN_WIDTH: i32 = 13 * PX;
/// Maximum side of a picture; twice that for a single picture.
const MAX_SIDE: i32 = 112 * PX;
const RIGHT_COLOR: Color = PALETTE[2];
const WRONG_COLOR: Color = PALETTE[1];

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

/// The drawing of a checked grid.
pub(crate) fn scene(grid: &Grid, width: i32) -> Scene {
    let mut scene = Scene::new(width, 0);
    let names = grid.rows.iter().map(|(name, _)| text_width(name, TEXT, false)).max().unwrap_or(0);
    let names = names.min(width / 4);
    let left = PADDING + if names > 0 { names + 12 * PX } else { 0 };
    let columns = grid.rows.iter().map(|(_, row)| row.len()).max().unwrap_or(1) as i32;
    let gap = if columns > 6 { 6 * PX } else { 12 * PX };
    let max_side = if columns == 1 { 2 * MAX_SIDE } else { MAX_SIDE };
    let cell = ((width - PADDING - left + gap) / columns - gap).min(max_side);
    let side = common_side(grid, cell);
    let captions = Captions::new(grid, cell + gap - CAPTION_GAP);
    let name_height = if names > 0 { TEXT } else { 0 };
    let (column_step, row_step) = (cell + gap, (side + captions.height).max(name_height) + gap);
    let top = scene.title(&grid.title) + 4 * PX;
    let largest = grid.largest();
    for ((name, pictures), row) in grid.rows.iter().zip(0..) {
        let y = top + row * row_step;
        let name = fit(name, names, TEXT, false);
        let at = (PADDING + names, y + side / 2);
        scene.text(Text::new(&name, at, Anchor::End).centered());
        for (picture, column) in pictures.iter().zip(0..) {
            let middle = (left + column * column_step + cell / 2, y + side / 2);
            picture.draw(&mut scene, middle, side, largest);
            captions.draw(&mut scene, picture, (middle.0, y + side));
        }
    }
    let bottom = top + grid.rows.len() as i32 * row_step - gap;
    let right = left + columns * column_step - gap;
    match largest {
        Some(largest) => {
            let end = draw_scale(&mut scene, (left, bottom + 12 * PX), largest);
            scene.height = bottom + 12 * PX + TEXT + PADDING;
            scene.crop(right.max(end), &grid.title);
        }
        None => {
            scene.height = bottom + PADDING;
            scene.crop(right, &grid.title);
        }
    }
    scene
}

/// The side of all pictures: at most `cell`, and sharp for those with the most pixels.
fn common_side(grid: &Grid, cell: i32) -> i32 {
    let sides = grid.pictures().map(|picture| picture.width.max(picture.height()) as i32);
    let most = sides.max().unwrap_or(1);
    let pixel = (cell / most).max(1);
    // Rounded down to whole CSS pixels, which look sharp, or to halves, which look even.
    let unit = if pixel >= 2 * PX { PX } else { PX / 2 };
    let pixel = if pixel >= unit { pixel / unit * unit } else { pixel };
    pixel * most
}

impl Picture {
    /// Draws the picture with its longer side as long as `side`, and its frame.
    fn draw(&self, scene: &mut Scene, middle: (i32, i32), side: i32, largest: Option<f32>) {
        let (width, height) = (self.width as i32, self.height() as i32);
        let pixel = (side / width.max(height)).max(1);
        let size = (width * pixel, height * pixel);
        let at = (middle.0 - size.0 / 2, middle.1 - size.1 / 2);
        let (colors, levels) = if self.signed {
            let largest = largest.unwrap_or(0.0).max(f32::MIN_POSITIVE);
            let level = |value: &f32| (15.0 + value / largest * 15.0).round() as u8;
            (Colors::Diverging, self.pixels.iter().map(level).collect())
        } else {
            let level = |pixel: &f32| (pixel * 15.0).round() as u8;
            (Colors::Gray, self.pixels.iter().map(level).collect())
        };
        let width = self.width;
        scene.shapes.push(Shape::Picture(raster::Picture { at, pixel, width, colors, levels }));
        self.draw_frame(scene, at, size);
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

    fn sign_width(&self) -> i32 {
        if self.verdict.is_some() { SIGN_WIDTH } else { 0 }
    }

    fn is_bold(&self) -> bool {
        self.verdict == Some(false)
    }
}

/// How captions are written: all in one size.
struct Captions {
    width: i32,
    size: i32,
    /// 0 if there are none.
    height: i32,
}

impl Captions {
    fn new(grid: &Grid, width: i32) -> Self {
        let fits = |size: &i32| {
            grid.pictures().all(|picture| {
                let text = text_width(&picture.caption, *size, picture.is_bold());
                picture.sign_width() + text <= width
            })
        };
        let smallest = 9 * PX;
        let size = [TEXT, 11 * PX, 10 * PX].into_iter().find(fits).unwrap_or(smallest);
        let is_bare = |picture: &Picture| picture.caption.is_empty() && picture.verdict.is_none();
        let height = if grid.pictures().all(is_bare) { 0 } else { CAPTION_HEIGHT };
        Self { width, size, height }
    }

    /// Draws the sign of the verdict and the caption, centered below the picture.
    fn draw(&self, scene: &mut Scene, picture: &Picture, (middle, bottom): (i32, i32)) {
        let (sign, bold, size) = (picture.sign_width(), picture.is_bold(), self.size);
        let text = fit(&picture.caption, self.width - sign, size, bold);
        let width = sign + text_width(&text, size, bold);
        let at = (middle - width / 2, bottom + CAPTION_HEIGHT / 2 + 2 * PX);
        match picture.verdict {
            Some(true) => draw_check_mark(scene, at),
            Some(false) => draw_cross(scene, at),
            None => {}
        }
        let at = (at.0 + sign, at.1);
        scene.text(Text { bold, size, ..Text::new(&text, at, Anchor::Start) }.centered());
    }
}

/// The number at the positive end of the scale of signed pictures.
pub(crate) fn scale_end(largest: f32) -> String {
    short(f64::from(largest))
}

/// Draws the colors of signed pictures between the numbers at their ends; returns the x coordinate
/// of its right end.
fn draw_scale(scene: &mut Scene, (left, top): (i32, i32), largest: f32) -> i32 {
    const LEVELS: usize = 31;
    let (pixel, gap, middle) = (5 * PX, 6 * PX, top + TEXT / 2);
    let end = scale_end(largest);
    let start = format!("-{end}");
    let at = (left + text_width(&start, TEXT, false) + gap, middle - pixel);
    let size = (LEVELS as i32 * pixel, 2 * pixel);
    scene.text(Text::new(&start, (left, middle), Anchor::Start).centered());
    let levels = (0..LEVELS as u8).collect::<Vec<_>>().repeat(2);
    let colors = Colors::Diverging;
    scene.shapes.push(Shape::Picture(raster::Picture { at, pixel, width: LEVELS, colors, levels }));
    scene.outline(at, size, GRID_COLOR, PX);
    let right = at.0 + size.0 + gap;
    scene.text(Text::new(&end, (right, middle), Anchor::Start).centered());
    right + text_width(&end, TEXT, false)
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
