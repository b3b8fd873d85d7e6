//! The shapes that make up a figure, and their SVG form.

use std::fmt::Write;

use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    FontStyle, FontTransform,
};

use crate::display::escape;
use crate::raster::Picture;
pub(crate) use crate::units::{Color, PX};
use crate::units::{Hex, Px};

/// Space between the edge of a figure and its content.
pub(crate) const PADDING: i32 = 16 * PX;
/// Font size of tick labels, legends and captions.
pub(crate) const TEXT: i32 = 12 * PX;
/// Width of the stroke behind a text with a halo.
pub(crate) const HALO: i32 = 4 * PX;
/// Font size of titles.
pub(crate) const TITLE: i32 = 15 * PX;

pub(crate) const TEXT_COLOR: Color = (0x24, 0x29, 0x2f);
pub(crate) const MUTED: Color = (0x57, 0x60, 0x6a);
pub(crate) const GRID_COLOR: Color = (0xd0, 0xd5, 0xdb);
/// A card that neither glares in a dark notebook nor looks dull in a light one.
pub(crate) const BACKGROUND: Color = (0xec, 0xef, 0xf2);
/// The Okabe–Ito palette, which color-blind readers can distinguish, without its yellow, which is
/// too pale on the card (<https://jfly.uni-koeln.de/color/>).
pub(crate) const PALETTE: [Color; 7] = [
    (0x00, 0x72, 0xb2),
    (0xd5, 0x5e, 0x00),
    (0x00, 0x9e, 0x73),
    (0xcc, 0x79, 0xa7),
    (0xe6, 0x9f, 0x00),
    (0x56, 0xb4, 0xe9),
    (0x00, 0x00, 0x00),
];

/// Colors for ten classes: the palette, a violet, a brown and an aubergine, which are the farthest
/// from it for all kinds of color vision. Each also has a marker shape.
pub(crate) const CLASS_COLORS: [Color; 10] = [
    PALETTE[0],
    PALETTE[1],
    PALETTE[2],
    PALETTE[3],
    PALETTE[4],
    PALETTE[5],
    PALETTE[6],
    (0x99, 0x55, 0xff),
    (0x77, 0x33, 0x00),
    (0x55, 0x33, 0x55),
];

/// Horizontal alignment of a text at its anchor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// A shape; later shapes cover earlier ones.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Rect { at: BackendCoord, size: (i32, i32), fill: Color },
    Line { points: Vec<BackendCoord>, stroke: Color, width: i32, dash: &'static [i32] },
    Polygon { points: Vec<BackendCoord>, fill: Color },
    Circle { center: BackendCoord, radius: i32, fill: Color },
    Text(Text),
    Picture(Picture),
}

/// A line of text whose baseline starts at, is centered on, or ends at `at`.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub at: BackendCoord,
    pub text: String,
    pub size: i32,
    pub anchor: Anchor,
    pub bold: bool,
    pub fill: Color,
    /// Whether an outline in the background's color sets the text off from what it covers.
    pub halo: bool,
    /// The pivot of a quarter turn counter-clockwise, for text that reads upwards.
    pub rotated_about: Option<BackendCoord>,
}

/// Shapes on a card.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scene {
    pub width: i32,
    pub height: i32,
    pub shapes: Vec<Shape>,
}

impl Scene {
    pub fn new(width: i32, height: i32) -> Self {
        Self { width, height, shapes: Vec::new() }
    }

    /// Adds a line of text unless it is empty.
    pub fn text(&mut self, text: Text) {
        if !text.text.is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    /// Adds the title at the top left, truncated to the width; returns the y coordinate below it.
    pub fn title(&mut self, title: &str) -> i32 {
        let title = fit(title, self.width - 2 * PADDING, TITLE, true);
        let at = (PADDING, PADDING + 12 * PX);
        self.text(Text { size: TITLE, bold: true, ..Text::new(&title, at, Anchor::Start) });
        PADDING + 24 * PX
    }

    /// Reduces the width to that of the content and the title.
    pub fn crop(&mut self, right: i32, title: &str) {
        let content = right.max(PADDING + text_width(title, TITLE, true));
        self.width = self.width.min(content + PADDING);
    }

    /// Adds the outline of a rectangle.
    pub fn outline(&mut self, at: BackendCoord, size: (i32, i32), stroke: Color, width: i32) {
        let (x0, y0, x1, y1) = (at.0, at.1, at.0 + size.0, at.1 + size.1);
        // Repeats the first side so that the last corner gets a line join.
        let points = vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0), (x1, y0)];
        self.shapes.push(Shape::Line { points, stroke, width, dash: &[] });
    }

    /// Adds another scene's shapes, shifted right by `dx`.
    pub fn append(&mut self, scene: Scene, dx: i32) {
        for mut shape in scene.shapes {
            shape.shift(dx);
            self.shapes.push(shape);
        }
        self.width = self.width.max(dx + scene.width);
        self.height = self.height.max(scene.height);
    }

    /// The scene as an SVG document with a title and a description for screen readers.
    pub fn svg(&self, title: &str, description: &str) -> String {
        let (width, height) = (Px(self.width), Px(self.height));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" font-family=\"sans-serif\">\n\
             <title>{}</title>\n<desc>{}</desc>\n\
             <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{}\"/>\n",
            escape(title),
            escape(description),
            Hex(BACKGROUND),
        );
        for shape in &self.shapes {
            let _ = shape.write(&mut svg); // writing to a string cannot fail
        }
        svg + "</svg>\n"
    }
}

impl Shape {
    fn shift(&mut self, dx: i32) {
        match self {
            Shape::Rect { at, .. } | Shape::Picture(Picture { at, .. }) => at.0 += dx,
            Shape::Circle { center, .. } => center.0 += dx,
            Shape::Line { points, .. } | Shape::Polygon { points, .. } => {
                points.iter_mut().for_each(|point| point.0 += dx);
            }
            Shape::Text(text) => {
                text.at.0 += dx;
                text.rotated_about.iter_mut().for_each(|pivot| pivot.0 += dx);
            }
        }
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        match self {
            Shape::Rect { at, size, fill } => writeln!(
                svg,
                r#"<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>"#,
                Px(at.0),
                Px(at.1),
                Px(size.0),
                Px(size.1),
                Hex(*fill)
            ),
            Shape::Line { points, stroke, width, dash } => {
                let (points, stroke, width) = (Points(points), Hex(*stroke), Px(*width));
                write!(svg, r#"<polyline points="{points}" fill="none" stroke="{stroke}" "#)?;
                write!(svg, r#"stroke-width="{width}" stroke-linejoin="round""#)?;
                if !dash.is_empty() {
                    let dash: Vec<_> = dash.iter().map(|length| Px(*length).to_string()).collect();
                    write!(svg, r#" stroke-dasharray="{}""#, dash.join(" "))?;
                }
                writeln!(svg, "/>")
            }
            Shape::Polygon { points, fill } => {
                writeln!(svg, r#"<polygon points="{}" fill="{}"/>"#, Points(points), Hex(*fill))
            }
            Shape::Circle { center, radius, fill } => writeln!(
                svg,
                r#"<circle cx="{}" cy="{}" r="{}" fill="{}"/>"#,
                Px(center.0),
                Px(center.1),
                Px(*radius),
                Hex(*fill)
            ),
            Shape::Text(text) => text.write(svg),
            Shape::Picture(picture) => picture.write(svg),
        }
    }
}

impl Text {
    /// A line of text in the default size and color, its baseline at `at`.
    pub fn new(text: &str, at: BackendCoord, anchor: Anchor) -> Self {
        let text = text.to_owned();
        let (size, fill) = (TEXT, TEXT_COLOR);
        Self { at, text, size, anchor, bold: false, fill, halo: false, rotated_about: None }
    }

    /// The same text, vertically centered on its anchor.
    pub fn centered(mut self) -> Self {
        self.at.1 += baseline_offset(VPos::Center, self.size);
        self
    }

    /// The same text, reading upwards, rotated about its anchor.
    pub fn upwards(mut self) -> Self {
        self.rotated_about = Some(self.at);
        self.centered()
    }

    fn write(&self, svg: &mut String) -> std::fmt::Result {
        let (x, y, size) = (Px(self.at.0), Px(self.at.1), Px(self.size));
        write!(svg, r#"<text x="{x}" y="{y}" font-size="{size}" fill="{}""#, Hex(self.fill))?;
        match self.anchor {
            Anchor::Start => {}
            Anchor::Middle => write!(svg, r#" text-anchor="middle""#)?,
            Anchor::End => write!(svg, r#" text-anchor="end""#)?,
        }
        if self.bold {
            write!(svg, r#" font-weight="bold""#)?;
        }
        if self.halo {
            let (stroke, width) = (Hex(BACKGROUND), Px(HALO));
            write!(svg, r#" paint-order="stroke" stroke="{stroke}" stroke-width="{width}""#)?;
        }
        if let Some(pivot) = self.rotated_about {
            write!(svg, r#" transform="rotate(-90 {} {})""#, Px(pivot.0), Px(pivot.1))?;
        }
        writeln!(svg, ">{}</text>", escape(&self.text))
    }
}

struct Points<'a>(&'a [BackendCoord]);

impl std::fmt::Display for Points<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        for (index, (x, y)) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{},{}", Px(*x), Px(*y))?;
        }
        Ok(())
    }
}

/// Distance from a text's anchor down to its baseline.
fn baseline_offset(anchor: VPos, size: i32) -> i32 {
    match anchor {
        VPos::Top => size * 76 / 100,
        VPos::Center => size * 36 / 100,
        VPos::Bottom => -size * 24 / 100,
    }
}

/// Advance widths of the printable ASCII characters in DejaVu Sans, in thousandths of an em.
/// Hardly any sans-serif font is wider, so a layout based on them fits the viewer's font.
#[rustfmt::skip]
const ADVANCES: [i32; 95] = [
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337, 636, 636, 636,
    636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632,
    575, 775, 752, 295, 295, 656, 557, 863, 748, 787, 603, 787, 695, 635, 611, 732, 684, 989, 685,
    611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278, 579,
    278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
];

/// An upper estimate of the width of a line of text.
pub(crate) fn text_width(text: &str, size: i32, bold: bool) -> i32 {
    text.chars().map(|c| advance(c, size, bold)).fold(0, i32::saturating_add)
}

/// An upper estimate of the width of a character.
fn advance(c: char, size: i32, bold: bool) -> i32 {
    let index = (c as usize).checked_sub(' ' as usize);
    let regular = index.and_then(|index| ADVANCES.get(index)).copied().unwrap_or(match c {
        '⁰'..='⁻' | '¹' | '²' | '³' => 530,
        _ => 1000,
    });
    let thousandths = if bold { regular * 115 / 100 } else { regular };
    (thousandths * size + 999) / 1000
}

/// Truncates text to a width, with an ellipsis.
pub(crate) fn fit(text: &str, width: i32, size: i32, bold: bool) -> String {
    if text.is_empty() || text_width(text, size, bold) <= width {
        return text.to_owned();
    }
    let mut remaining = width - advance('…', size, bold);
    let fits = |c: &char| {
        remaining -= advance(*c, size, bold);
        remaining >= 0
    };
    let prefix: String = text.chars().take_while(fits).collect();
    prefix.trim_end().to_owned() + "…"
}

/// A plotters drawing backend that adds shapes to a scene.
pub(crate) struct Backend<'a>(pub &'a mut Scene);

/// This backend cannot fail.
type BackendError = DrawingErrorKind<std::convert::Infallible>;

impl DrawingBackend for Backend<'_> {
    type ErrorType = std::convert::Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.0.width.unsigned_abs(), self.0.height.unsigned_abs())
    }

    fn ensure_prepared(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, color: BackendColor) -> Result<(), BackendError> {
        self.0.shapes.push(Shape::Rect { at, size: (1, 1), fill: color.rgb });
        Ok(())
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Result<(), BackendError> {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Result<(), BackendError> {
        if style.color().alpha > 0.0 {
            self.0.shapes.push(Shape::Line {
                points: path.into_iter().collect(),
                stroke: style.color().rgb,
                width: i32::try_from(style.stroke_width()).unwrap_or(PX),
                dash: &[],
            });
        }
        Ok(())
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        upper_left: BackendCoord,
        bottom_right: BackendCoord,
        style: &S,
        fill: bool,
    ) -> Result<(), BackendError> {
        let size = (bottom_right.0 - upper_left.0, bottom_right.1 - upper_left.1);
        let color = style.color().rgb;
        if fill {
            self.0.shapes.push(Shape::Rect { at: upper_left, size, fill: color });
        } else {
            self.0.outline(upper_left, size, color, PX);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        pos: BackendCoord,
    ) -> Result<(), BackendError> {
        let size = style.size() as i32;
        let anchor = match style.anchor().h_pos {
            HPos::Left => Anchor::Start,
            HPos::Center => Anchor::Middle,
            HPos::Right => Anchor::End,
        };
        self.0.text(Text {
            at: (pos.0, pos.1 + baseline_offset(style.anchor().v_pos, size)),
            text: text.to_owned(),
            size,
            anchor,
            bold: matches!(style.style(), FontStyle::Bold),
            fill: style.color().rgb,
            halo: false,
            rotated_about: matches!(style.transform(), FontTransform::Rotate270).then_some(pos),
        });
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), BackendError> {
        let size = style.size() as i32;
        Ok((text_width(text, size, false).unsigned_abs(), size.unsigned_abs()))
    }
}
