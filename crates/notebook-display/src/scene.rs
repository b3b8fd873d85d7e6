//! The shapes a figure is made of, and how they are written as SVG.
//!
//! All lengths are tenths of a CSS pixel, as plotters' coordinates are integers.

use std::fmt::Write;

use plotters::style::text_anchor::{HPos, VPos};
use plotters_backend::{
    BackendColor, BackendCoord, BackendStyle, BackendTextStyle, DrawingBackend, DrawingErrorKind,
    FontStyle, FontTransform,
};

/// One CSS pixel.
pub(crate) const PX: i32 = 10;
/// Space between the edge of a figure and its content.
pub(crate) const PADDING: i32 = 16 * PX;
/// Size of tick labels, legends and captions.
pub(crate) const TEXT: i32 = 12 * PX;
/// Size of titles.
pub(crate) const TITLE: i32 = 15 * PX;

/// An opaque colour: red, green, blue.
pub(crate) type Colour = (u8, u8, u8);
pub(crate) const INK: Colour = (0x24, 0x29, 0x2f);
pub(crate) const FAINT: Colour = (0x57, 0x60, 0x6a);
pub(crate) const GRID: Colour = (0xe1, 0xe4, 0xe8);
pub(crate) const PAPER: Colour = (0xff, 0xff, 0xff);
/// Okabe and Ito's palette, which colour-blind readers can tell apart, without its yellow, too
/// pale on white (<https://jfly.uni-koeln.de/color/>).
pub(crate) const PALETTE: [Colour; 7] = [
    (0x00, 0x72, 0xb2),
    (0xd5, 0x5e, 0x00),
    (0x00, 0x9e, 0x73),
    (0xcc, 0x79, 0xa7),
    (0xe6, 0x9f, 0x00),
    (0x56, 0xb4, 0xe9),
    (0x00, 0x00, 0x00),
];

/// Colours for ten classes of points, far enough apart for colour-blind readers, too, where they
/// come with a form each: those of the palette, and a dark red, a dark blue and a grey.
pub(crate) const CLASSES: [Colour; 10] = [
    PALETTE[0],
    PALETTE[1],
    PALETTE[2],
    PALETTE[3],
    PALETTE[4],
    PALETTE[5],
    PALETTE[6],
    (0x88, 0x22, 0x55),
    (0x33, 0x22, 0x88),
    (0x77, 0x77, 0x77),
];

/// Where a text's anchor lies along its line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// One shape; later ones cover earlier ones.
#[derive(Clone, Debug)]
pub(crate) enum Shape {
    Rect { at: BackendCoord, size: (i32, i32), fill: Colour },
    Line { points: Vec<BackendCoord>, stroke: Colour, width: i32, dash: &'static [i32] },
    Polygon { points: Vec<BackendCoord>, fill: Colour },
    Circle { centre: BackendCoord, radius: i32, fill: Colour },
    Text(Text),
    Picture(Picture),
}

/// One line of text whose baseline starts (or has its middle, or ends) at `at`.
#[derive(Clone, Debug)]
pub(crate) struct Text {
    pub at: BackendCoord,
    pub text: String,
    pub size: i32,
    pub anchor: Anchor,
    pub bold: bool,
    pub fill: Colour,
    /// Whether it reads from below upwards, turned about `pivot`.
    pub upwards: Option<BackendCoord>,
}

/// Square pixels in 16 greys, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub at: BackendCoord,
    /// Side of one pixel.
    pub pixel: i32,
    pub width: usize,
    /// 0 is black, 15 is white.
    pub greys: Vec<u8>,
}

/// Shapes on a sheet of white paper.
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

    /// Adds a line of text, if there is any.
    pub fn text(&mut self, text: Text) {
        if !text.text.is_empty() {
            self.shapes.push(Shape::Text(text));
        }
    }

    /// Adds the title at the top left, shortened to the width; returns the height below it.
    pub fn title(&mut self, title: &str) -> i32 {
        let title = fit(title, self.width - 2 * PADDING, TITLE, true);
        let at = (PADDING, PADDING + 12 * PX);
        self.text(Text { size: TITLE, bold: true, ..Text::new(&title, at, Anchor::Start) });
        PADDING + 24 * PX
    }

    /// Cuts the paper to the right of the content, but not of the title.
    pub fn crop(&mut self, right: i32, title: &str) {
        let content = right.max(PADDING + text_width(title, TITLE, true));
        self.width = self.width.min(content + PADDING);
    }

    /// Adds the outline of a rectangle.
    pub fn outline(&mut self, at: BackendCoord, size: (i32, i32), stroke: Colour, width: i32) {
        let (x0, y0, x1, y1) = (at.0, at.1, at.0 + size.0, at.1 + size.1);
        // The first side twice, so that the last corner is closed.
        let points = vec![(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0), (x1, y0)];
        self.shapes.push(Shape::Line { points, stroke, width, dash: &[] });
    }

    /// Adds another scene's shapes, moved to the right.
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
            Hex(PAPER),
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
            Shape::Circle { centre, .. } => centre.0 += dx,
            Shape::Line { points, .. } | Shape::Polygon { points, .. } => {
                points.iter_mut().for_each(|point| point.0 += dx);
            }
            Shape::Text(text) => {
                text.at.0 += dx;
                text.upwards.iter_mut().for_each(|pivot| pivot.0 += dx);
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
            Shape::Circle { centre, radius, fill } => writeln!(
                svg,
                r#"<circle cx="{}" cy="{}" r="{}" fill="{}"/>"#,
                Px(centre.0),
                Px(centre.1),
                Px(*radius),
                Hex(*fill)
            ),
            Shape::Text(text) => text.write(svg),
            Shape::Picture(picture) => picture.write(svg),
        }
    }
}

impl Text {
    /// A line of text of the usual size and ink, its baseline at `at`.
    pub fn new(text: &str, at: BackendCoord, anchor: Anchor) -> Self {
        let text = text.to_owned();
        Self { at, text, size: TEXT, anchor, bold: false, fill: INK, upwards: None }
    }

    /// The same text with its middle, not its baseline, at the height of its anchor.
    pub fn centred(mut self) -> Self {
        self.at.1 += drop(VPos::Center, self.size);
        self
    }

    /// The same text, reading upwards, turned about its anchor.
    pub fn upwards(mut self) -> Self {
        self.upwards = Some(self.at);
        self.centred()
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
        if let Some(pivot) = self.upwards {
            write!(svg, r#" transform="rotate(-90 {} {})""#, Px(pivot.0), Px(pivot.1))?;
        }
        writeln!(svg, ">{}</text>", escape(&self.text))
    }
}

impl Picture {
    pub fn height(&self) -> usize {
        self.greys.len() / self.width.max(1)
    }

    /// Horizontal runs of equal grey other than black: grey, row, first column, length.
    pub fn runs(&self) -> Vec<(u8, usize, usize, usize)> {
        let mut runs = Vec::new();
        for (row, greys) in self.greys.chunks(self.width.max(1)).enumerate() {
            let mut column = 0;
            for run in greys.chunk_by(|a, b| a == b) {
                if run[0] > 0 {
                    runs.push((run[0], row, column, run.len()));
                }
                column += run.len();
            }
        }
        runs
    }

    /// One path per grey, stroked one pixel wide along the middle of each row: the shortest SVG.
    fn write(&self, svg: &mut String) -> std::fmt::Result {
        write!(
            svg,
            "<g transform=\"translate({} {}) scale({})\" shape-rendering=\"crispEdges\">\
             <rect width=\"{}\" height=\"{}\"/>",
            Px(self.at.0),
            Px(self.at.1),
            Px(self.pixel),
            self.width,
            self.height()
        )?;
        let mut runs = self.runs();
        runs.sort();
        for runs in runs.chunk_by(|a, b| a.0 == b.0) {
            let grey = runs[0].0;
            write!(svg, "<path stroke=\"#{grey:x}{grey:x}{grey:x}\" d=\"")?;
            for (_, row, column, length) in runs {
                write!(svg, "M{column} {row}.5h{length}")?;
            }
            write!(svg, "\"/>")?;
        }
        writeln!(svg, "</g>")
    }
}

/// A length as CSS pixels: `123`, `12.3`.
struct Px(i32);

impl std::fmt::Display for Px {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}", f64::from(self.0) / f64::from(PX))
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

struct Hex(Colour);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let (red, green, blue) = self.0;
        write!(f, "#{red:02x}{green:02x}{blue:02x}")
    }
}

/// Text as it may stand in XML and HTML; control characters, which XML forbids, become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push(' '),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Distance from a text's anchor down to its baseline.
fn drop(anchor: VPos, size: i32) -> i32 {
    match anchor {
        VPos::Top => size * 76 / 100,
        VPos::Center => size * 36 / 100,
        VPos::Bottom => -size * 24 / 100,
    }
}

/// Advance widths of the ASCII characters from the space on in DejaVu Sans, thousandths of an em.
/// Hardly any sans-serif font is wider, so a text laid out by them fits whatever font draws it.
#[rustfmt::skip]
const ADVANCES: [i32; 95] = [
    318, 401, 460, 838, 636, 950, 780, 275, 390, 390, 500, 838, 318, 361, 318, 337, 636, 636, 636,
    636, 636, 636, 636, 636, 636, 636, 337, 337, 838, 838, 838, 531, 1000, 684, 686, 698, 770, 632,
    575, 775, 752, 295, 295, 656, 557, 863, 748, 787, 603, 787, 695, 635, 611, 732, 684, 989, 685,
    611, 685, 390, 337, 390, 838, 500, 500, 613, 635, 550, 635, 615, 352, 635, 634, 278, 278, 579,
    278, 974, 634, 612, 635, 635, 411, 521, 392, 634, 592, 818, 592, 592, 525, 636, 337, 636, 838,
];

/// Width of a line of text, or a little more.
pub(crate) fn text_width(text: &str, size: i32, bold: bool) -> i32 {
    text.chars().map(|c| advance(c, size, bold)).fold(0, i32::saturating_add)
}

/// Width of one character, or a little more.
fn advance(c: char, size: i32, bold: bool) -> i32 {
    let index = (c as usize).checked_sub(' ' as usize);
    let regular = index.and_then(|index| ADVANCES.get(index)).copied().unwrap_or(1000);
    let thousandths = if bold { regular * 115 / 100 } else { regular };
    (thousandths * size + 999) / 1000
}

/// The text, or as much of its beginning as fits, with an ellipsis.
pub(crate) fn fit(text: &str, width: i32, size: i32, bold: bool) -> String {
    if text_width(text, size, bold) <= width {
        return text.to_owned();
    }
    let mut left = width - advance('…', size, bold);
    let fits = |c: &char| {
        left -= advance(*c, size, bold);
        left >= 0
    };
    let beginning: String = text.chars().take_while(fits).collect();
    beginning.trim_end().to_owned() + "…"
}

/// The scene as a drawing backend of plotters.
pub(crate) struct Backend<'a>(pub &'a mut Scene);

/// The error of a backend that has none.
type Never = DrawingErrorKind<std::convert::Infallible>;

impl DrawingBackend for Backend<'_> {
    type ErrorType = std::convert::Infallible;

    fn get_size(&self) -> (u32, u32) {
        (self.0.width.unsigned_abs(), self.0.height.unsigned_abs())
    }

    fn ensure_prepared(&mut self) -> Result<(), Never> {
        Ok(())
    }

    fn present(&mut self) -> Result<(), Never> {
        Ok(())
    }

    fn draw_pixel(&mut self, at: BackendCoord, colour: BackendColor) -> Result<(), Never> {
        self.0.shapes.push(Shape::Rect { at, size: (1, 1), fill: colour.rgb });
        Ok(())
    }

    fn draw_line<S: BackendStyle>(
        &mut self,
        from: BackendCoord,
        to: BackendCoord,
        style: &S,
    ) -> Result<(), Never> {
        self.draw_path([from, to], style)
    }

    fn draw_path<S: BackendStyle, I: IntoIterator<Item = BackendCoord>>(
        &mut self,
        path: I,
        style: &S,
    ) -> Result<(), Never> {
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
    ) -> Result<(), Never> {
        let size = (bottom_right.0 - upper_left.0, bottom_right.1 - upper_left.1);
        let colour = style.color().rgb;
        if fill {
            self.0.shapes.push(Shape::Rect { at: upper_left, size, fill: colour });
        } else {
            self.0.outline(upper_left, size, colour, PX);
        }
        Ok(())
    }

    fn draw_text<S: BackendTextStyle>(
        &mut self,
        text: &str,
        style: &S,
        pos: BackendCoord,
    ) -> Result<(), Never> {
        let size = style.size() as i32;
        let anchor = match style.anchor().h_pos {
            HPos::Left => Anchor::Start,
            HPos::Center => Anchor::Middle,
            HPos::Right => Anchor::End,
        };
        self.0.text(Text {
            at: (pos.0, pos.1 + drop(style.anchor().v_pos, size)),
            text: text.to_owned(),
            size,
            anchor,
            bold: matches!(style.style(), FontStyle::Bold),
            fill: style.color().rgb,
            upwards: matches!(style.transform(), FontTransform::Rotate270).then_some(pos),
        });
        Ok(())
    }

    fn estimate_text_size<S: BackendTextStyle>(
        &self,
        text: &str,
        style: &S,
    ) -> Result<(u32, u32), Never> {
        let size = style.size() as i32;
        Ok((text_width(text, size, false).unsigned_abs(), size.unsigned_abs()))
    }
}
