//! Figures as PNG files.

use std::collections::BTreeSet;

use plotters_backend::BackendCoord;
use tiny_skia::{
    FillRule, LineCap, LineJoin, Paint, Path, PathBuilder, Pixmap, Rect, Stroke, StrokeDash,
    Transform,
};
use ttf_parser::{Face, GlyphId, OutlineBuilder};

use crate::error::{Error, Result};
use crate::png_encoder;
use crate::raster::Picture;
use crate::scene::{Anchor, BACKGROUND, Color, HALO, PX, Scene, Shape, Text};

/// The font of PNG files, so that they do not depend on system fonts.
const FONT: &[u8] = include_bytes!("font/DejaVuSans-subset.ttf");

/// Pixels per CSS pixel, for high-density screens.
const DENSITY: f32 = 2.0;

/// Renders a scene as a PNG file.
pub(crate) fn render(scene: &Scene) -> Result<Vec<u8>> {
    let fail = |what: &str| Error::Figure(format!("cannot create a PNG: {what}"));
    let side = |length: i32| (length as f32 / PX as f32 * DENSITY).ceil() as u32;
    let pixmap = Pixmap::new(side(scene.width), side(scene.height));
    let mut painter = Painter {
        pixmap: pixmap.ok_or_else(|| fail("the figure is empty or too large"))?,
        scale: Transform::from_scale(DENSITY / PX as f32, DENSITY / PX as f32),
        face: Face::parse(FONT, 0).map_err(|err| fail(&err.to_string()))?,
    };
    let missing = painter.missing(scene);
    if !missing.is_empty() {
        let letters = missing.iter().map(|letter| format!("{letter:?}")).collect::<Vec<_>>();
        let letters = letters.join(", ");
        return Err(fail(&format!("its font lacks {letters}; save the figure as .svg")));
    }
    // All of it: the last row and column may lie partly beyond the scene.
    painter.pixmap.fill(solid_color(BACKGROUND));
    for shape in &scene.shapes {
        painter.shape(shape);
    }
    png_encoder::encode(&painter.pixmap).map_err(|err| fail(&err.to_string()))
}

struct Painter {
    pixmap: Pixmap,
    scale: Transform,
    face: Face<'static>,
}

impl Painter {
    /// The characters in a scene that the font lacks.
    fn missing(&self, scene: &Scene) -> BTreeSet<char> {
        let texts = scene.shapes.iter().filter_map(|shape| match shape {
            Shape::Text(text) => Some(&text.text),
            _ => None,
        });
        texts.flat_map(|text| text.chars()).filter(|c| self.glyph(*c).is_none()).collect()
    }

    /// The glyph of a character; control characters become spaces, as in SVG.
    fn glyph(&self, c: char) -> Option<GlyphId> {
        self.face.glyph_index(if c.is_control() { ' ' } else { c })
    }

    fn shape(&mut self, shape: &Shape) {
        match shape {
            Shape::Rect { at, size, fill } => self.rect(*at, *size, *fill),
            Shape::Line { points, stroke, width, dash } => self.line(points, *stroke, *width, dash),
            Shape::Polygon { points, fill } => self.fill(path(points, true), *fill),
            Shape::Circle { center, radius, fill } => {
                let (x, y) = (center.0 as f32, center.1 as f32);
                self.fill(PathBuilder::from_circle(x, y, *radius as f32), *fill);
            }
            Shape::Text(text) => self.text(text),
            Shape::Picture(picture) => self.picture(picture),
        }
    }

    fn rect(&mut self, at: BackendCoord, size: (i32, i32), fill: Color) {
        let [x, y, width, height] = [at.0, at.1, size.0, size.1].map(|length| length as f32);
        if let Some(rect) = Rect::from_xywh(x, y, width, height) {
            self.pixmap.fill_rect(rect, &solid_paint(fill), self.scale, None);
        }
    }

    fn fill(&mut self, path: Option<Path>, fill: Color) {
        if let Some(path) = path {
            let paint = solid_paint(fill);
            self.pixmap.fill_path(&path, &paint, FillRule::Winding, self.scale, None);
        }
    }

    fn line(&mut self, points: &[BackendCoord], color: Color, width: i32, dash: &[i32]) {
        let Some(path) = path(points, false) else {
            return;
        };
        // As in SVG, an odd number of lengths is repeated once.
        let repeats = if dash.len() % 2 == 1 { 2 } else { 1 };
        let dash: Vec<f32> = dash.repeat(repeats).iter().map(|length| *length as f32).collect();
        let stroke = Stroke {
            width: width as f32,
            line_cap: LineCap::Butt,
            line_join: LineJoin::Round,
            dash: StrokeDash::new(dash, 0.0),
            ..Stroke::default()
        };
        self.pixmap.stroke_path(&path, &solid_paint(color), &stroke, self.scale, None);
    }

    fn picture(&mut self, picture: &Picture) {
        let pixel = picture.pixel;
        let position = |row: usize, column: usize| {
            (picture.at.0 + column as i32 * pixel, picture.at.1 + row as i32 * pixel)
        };
        let size = (picture.width as i32 * pixel, picture.height() as i32 * pixel);
        let colors = picture.colors;
        self.rect(picture.at, size, colors.color(colors.base()));
        for (level, row, column, length) in picture.runs() {
            let size = (length as i32 * pixel, pixel);
            self.rect(position(row, column), size, colors.color(level));
        }
    }

    fn text(&mut self, text: &Text) {
        let em = text.size as f32 / f32::from(self.face.units_per_em());
        let mut glyphs = Glyphs { builder: PathBuilder::new(), x: 0.0 };
        for glyph in text.text.chars().filter_map(|c| self.glyph(c)) {
            self.face.outline_glyph(glyph, &mut glyphs);
            glyphs.x += f32::from(self.face.glyph_hor_advance(glyph).unwrap_or_default());
        }
        let start = match text.anchor {
            Anchor::Start => 0.0,
            Anchor::Middle => -glyphs.x / 2.0,
            Anchor::End => -glyphs.x,
        };
        let Some(outline) = glyphs.builder.finish() else {
            return;
        };
        let rotation = text.rotated_about.map_or(Transform::identity(), |pivot| {
            Transform::from_rotate_at(-90.0, pivot.0 as f32, pivot.1 as f32)
        });
        let transform = Transform::from_translate(start, 0.0)
            .post_scale(em, -em)
            .post_translate(text.at.0 as f32, text.at.1 as f32)
            .post_concat(rotation);
        let Some(outline) = outline.transform(transform) else {
            return;
        };
        let bold = text.bold.then_some((text.size as f32 / 18.0, text.fill));
        let halo = text.halo.then_some((HALO as f32, BACKGROUND));
        for (width, color) in halo.into_iter().chain(bold) {
            let stroke = Stroke { width, ..Stroke::default() };
            let paint = solid_paint(color);
            self.pixmap.stroke_path(&outline, &paint, &stroke, self.scale, None);
        }
        self.fill(Some(outline), text.fill);
    }
}

fn solid_color((red, green, blue): Color) -> tiny_skia::Color {
    tiny_skia::Color::from_rgba8(red, green, blue, 255)
}

fn solid_paint(color: Color) -> Paint<'static> {
    let mut paint = Paint::default();
    paint.set_color(solid_color(color));
    paint
}

fn path(points: &[BackendCoord], closed: bool) -> Option<Path> {
    let mut builder = PathBuilder::new();
    for (index, (x, y)) in points.iter().enumerate() {
        let (x, y) = (*x as f32, *y as f32);
        if index == 0 { builder.move_to(x, y) } else { builder.line_to(x, y) }
    }
    if closed {
        builder.close();
    }
    builder.finish()
}

/// The outline of a line of glyphs, in font units.
struct Glyphs {
    builder: PathBuilder,
    x: f32,
}

impl OutlineBuilder for Glyphs {
    fn move_to(&mut self, x: f32, y: f32) {
        self.builder.move_to(self.x + x, y);
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.builder.line_to(self.x + x, y);
    }

    fn quad_to(&mut self, x1: f32, y1: f32, x: f32, y: f32) {
        self.builder.quad_to(self.x + x1, y1, self.x + x, y);
    }

    fn curve_to(&mut self, x1: f32, y1: f32, x2: f32, y2: f32, x: f32, y: f32) {
        self.builder.cubic_to(self.x + x1, y1, self.x + x2, y2, self.x + x, y);
    }

    fn close(&mut self) {
        self.builder.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::png_encoder::tests::decoded;

    #[test]
    fn a_fraction_of_a_pixel_at_the_edges_is_background() {
        let scene = Scene::new(10 * PX + 1, 10 * PX + 1);
        let pixels = decoded(render(&scene).unwrap());
        assert_eq!(pixels.len(), 21 * 21 * 3);
        let (red, green, blue) = BACKGROUND;
        assert!(pixels.chunks(3).all(|pixel| *pixel == [red, green, blue]));
    }
}
