//! The content of a line chart and its drawing: curves, legend and marks.

use plotters_backend::BackendCoord;

use crate::axes::{self, Axis, Scale};
use crate::error::Result;
use crate::legend::draw_legend;
use crate::markers::draw_marker;
use crate::scene::{
    Anchor, BACKGROUND, Color, MUTED, PADDING, PALETTE, PX, Scene, Shape, TEXT, TEXT_COLOR, Text,
    fit, text_width,
};

/// Maximum number of markers per line; more would hide it.
const MAX_MARKERS: usize = 12;
/// Width of a line.
const STROKE: i32 = 18;
/// Length of a line sample in the legend.
const SAMPLE: i32 = 34 * PX;
/// Height of a row of texts above the plot.
const ROW: i32 = 17 * PX;
const SHORT_DASH: &[i32] = &[3 * PX, 3 * PX];

/// A line chart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plot {
    pub title: String,
    pub x_label: String,
    pub y_label: String,
    pub log_x: bool,
    pub log_y: bool,
    pub curves: Vec<Curve>,
    /// Positions on the x axis and their texts.
    pub marks: Vec<(f64, String)>,
}

/// A series of a line chart.
#[derive(Clone, Debug)]
pub(crate) struct Curve {
    pub name: String,
    pub xs: Vec<f64>,
    pub ys: Vec<f64>,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Line,
    Reference,
    Points { errors: Vec<f64> },
}

impl Plot {
    /// The drawing, if the chart has been checked.
    pub fn scene(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let styles = styles(&self.curves);
        let below_title = scene.title(&self.title);
        let below_legend = if styles.len() > 1 {
            let names = self.curves.iter().map(|curve| curve.name.as_str());
            draw_legend(&mut scene, below_title, names, SAMPLE + 8 * PX, |scene, index, at| {
                styles[index].draw_sample(scene, at);
            })
        } else {
            below_title
        };
        let height = (width * 2 / 5).clamp(190 * PX, 270 * PX);

        let y = self.y_axis(height / (44 * PX));
        let left = PADDING + axes::left_margin(&y);
        let (x_scale, x_extent) = (self.x_scale(), self.x_extent());
        let x_axis = |steps| Axis::around(&self.x_label, x_scale, x_extent, steps);
        let x = Axis::fitting(width - PADDING - left, x_axis);
        let right = PADDING.max(x.label_width() / 2 + 4 * PX);
        let size = (width - right - left, height);

        let marks = place_marks(&self.marks, &x, (left, size.0));
        let rows = marks.iter().map(|mark| mark.row + 1).max().unwrap_or(0);
        let top = below_legend + 12 * PX + rows * ROW;
        scene.height = top + height + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        marks.iter().for_each(|mark| mark.draw_line(&mut scene, top, height));
        marks.iter().for_each(|mark| mark.draw_text(&mut scene, top));
        let clamped = |x: f64, y: f64| {
            let (x, y) = to_pixel(x, y);
            (x, y.clamp(top, top + height))
        };
        let lines: Vec<_> = self.curves.iter().map(|curve| curve.points(&to_pixel)).collect();
        for ((curve, style), points) in self.curves.iter().zip(&styles).zip(&lines) {
            match &curve.kind {
                Kind::Line | Kind::Reference => style.draw_line(&mut scene, points),
                Kind::Points { .. } => {
                    for (index, x) in curve.xs.iter().enumerate() {
                        let [low, high] = curve.ends(index).map(|y| clamped(*x, y));
                        style.draw_error_bar(&mut scene, low, high);
                    }
                }
            }
        }
        for (style, points) in styles.iter().zip(&lines) {
            style.draw_markers(&mut scene, points);
        }
        Ok(scene)
    }

    fn y_axis(&self, max_steps: i32) -> Axis {
        let (low, high) = self.y_extent();
        match self.y_scale() {
            Scale::Log => Axis::around(&self.y_label, Scale::Log, (low, high), max_steps),
            Scale::Linear | Scale::Whole => Axis::enclosing(&self.y_label, low, high, max_steps),
        }
    }

    fn x_scale(&self) -> Scale {
        let mut xs = self.curves.iter().flat_map(|curve| &curve.xs);
        match self.log_x {
            true => Scale::Log,
            false if xs.all(|x| x.fract() == 0.0) => Scale::Whole,
            false => Scale::Linear,
        }
    }

    fn y_scale(&self) -> Scale {
        if self.log_y { Scale::Log } else { Scale::Linear }
    }

    /// The smallest and largest position.
    fn x_extent(&self) -> (f64, f64) {
        let marks = self.marks.iter().map(|(x, _)| *x);
        extent(self.curves.iter().flat_map(|curve| curve.xs.iter().copied()).chain(marks))
    }

    /// The smallest and largest value, with the error bars as far as the axis can show them.
    fn y_extent(&self) -> (f64, f64) {
        let ends = self.curves.iter().flat_map(|curve| {
            (0..curve.ys.len())
                .flat_map(|index| curve.ends(index).into_iter().chain([curve.ys[index]]))
        });
        extent(ends.filter(|end| !self.log_y || *end > 0.0))
    }
}

impl Curve {
    /// The ends of the error bar of a point: below and above it.
    pub fn ends(&self, index: usize) -> [f64; 2] {
        let error = match &self.kind {
            Kind::Points { errors } => errors[index],
            Kind::Line | Kind::Reference => 0.0,
        };
        [self.ys[index] - error, self.ys[index] + error]
    }

    /// The points of the line. Of many values in one column of pixels, the first, minimum, maximum
    /// and last are enough to draw the same line.
    fn points(&self, to_pixel: impl Fn(f64, f64) -> BackendCoord) -> Vec<BackendCoord> {
        let points: Vec<_> = self.xs.iter().zip(&self.ys).map(|(x, y)| to_pixel(*x, *y)).collect();
        if self.kind != Kind::Line {
            return points;
        }
        let mut kept = Vec::new();
        for column in points.chunk_by(|a, b| a.0 / PX == b.0 / PX) {
            if column.len() <= 4 {
                kept.extend_from_slice(column);
                continue;
            }
            let by_height = |index: &usize| column[*index].1;
            let min = (0..column.len()).min_by_key(by_height).unwrap_or(0);
            let max = (0..column.len()).max_by_key(by_height).unwrap_or(0);
            let extremes = [0, min.min(max), min.max(max), column.len() - 1];
            kept.extend(extremes.map(|index| column[index]));
        }
        kept
    }
}

/// A mark's line and its text above the plot.
struct Mark {
    x: i32,
    text: String,
    /// The middle of the text.
    middle: i32,
    /// The row of the text, from the bottom.
    row: i32,
}

/// Places each text above its line, inside the plot's width, in the lowest row that has room.
fn place_marks(marks: &[(f64, String)], axis: &Axis, (left, width): (i32, i32)) -> Vec<Mark> {
    let mut placed: Vec<Mark> = Vec::new();
    for (x, text) in marks {
        let x = left + axis.offset(*x, width);
        let text = fit(text, width, TEXT, false);
        let half = text_width(&text, TEXT, false) / 2 + PX;
        let middle = x.clamp(left + half, (left + width - half).max(left + half));
        let is_free = |row: &i32| {
            placed.iter().filter(|mark| mark.row == *row).all(|mark| {
                let other = text_width(&mark.text, TEXT, false) / 2;
                (mark.middle - middle).abs() > other + half + 6 * PX
            })
        };
        let row = (0..).find(is_free).unwrap_or(0);
        placed.push(Mark { x, text, middle, row });
    }
    placed
}

impl Mark {
    fn draw_line(&self, scene: &mut Scene, top: i32, height: i32) {
        let points = vec![(self.x, top + height), (self.x, top - self.row * ROW - 2 * PX)];
        scene.shapes.push(Shape::Line { points, stroke: TEXT_COLOR, width: PX, dash: SHORT_DASH });
    }

    fn draw_text(&self, scene: &mut Scene, top: i32) {
        let at = (self.middle, top - self.row * ROW - ROW / 2 - 2 * PX);
        let text = Text::new(&self.text, at, Anchor::Middle).centered();
        scene.text(Text { halo: true, ..text });
    }
}

/// The look of a curve.
struct Style {
    color: Color,
    dash: &'static [i32],
    /// Its place among the curves with markers.
    marker: Option<usize>,
    has_line: bool,
}

fn styles(curves: &[Curve]) -> Vec<Style> {
    const DASHES: [&[i32]; 4] =
        [&[], &[7 * PX, 4 * PX], &[2 * PX, 3 * PX], &[9 * PX, 3 * PX, 2 * PX, 3 * PX]];
    let mut index = 0;
    let style = |curve: &Curve| {
        if curve.kind == Kind::Reference {
            return Style { color: MUTED, dash: SHORT_DASH, marker: None, has_line: true };
        }
        let (color, dash) = (PALETTE[index % PALETTE.len()], DASHES[index % DASHES.len()]);
        index += 1;
        Style { color, dash, marker: Some(index - 1), has_line: curve.kind == Kind::Line }
    };
    curves.iter().map(style).collect()
}

impl Style {
    /// Dense points are drawn as a thin, solid line; dashes or a thick stroke would hide details.
    fn draw_line(&self, scene: &mut Scene, points: &[BackendCoord]) {
        let dense = points.len() > 100;
        let (width, dash) = if dense { (PX, &[][..]) } else { (STROKE, self.dash) };
        self.push_line(scene, points.to_vec(), width, dash);
    }

    fn draw_error_bar(&self, scene: &mut Scene, low: BackendCoord, high: BackendCoord) {
        const CAP: i32 = 4 * PX;
        self.push_line(scene, vec![low, high], STROKE, &[]);
        for (x, y) in [low, high] {
            self.push_line(scene, vec![(x - CAP, y), (x + CAP, y)], STROKE, &[]);
        }
    }

    /// Draws all markers of points, and at most [`MAX_MARKERS`] on a line.
    fn draw_markers(&self, scene: &mut Scene, points: &[BackendCoord]) {
        let Some(index) = self.marker else { return };
        let stride = if self.has_line { points.len().div_ceil(MAX_MARKERS).max(1) } else { 1 };
        // If not every point has a marker, the markers of different lines are staggered.
        let first = (index * stride / 2) % stride;
        for point in points.iter().skip(first).step_by(stride) {
            self.draw_marker(scene, index, *point);
        }
    }

    fn draw_sample(&self, scene: &mut Scene, (left, middle): (i32, i32)) {
        let center = (left + SAMPLE / 2, middle);
        if self.has_line {
            let points = vec![(left, middle), (left + SAMPLE, middle)];
            self.push_line(scene, points, STROKE, self.dash);
        } else {
            let (low, high) = ((center.0, middle + 8 * PX), (center.0, middle - 8 * PX));
            self.draw_error_bar(scene, low, high);
        }
        if let Some(index) = self.marker {
            self.draw_marker(scene, index, center);
        }
    }

    fn push_line(
        &self,
        scene: &mut Scene,
        points: Vec<BackendCoord>,
        width: i32,
        dash: &'static [i32],
    ) {
        scene.shapes.push(Shape::Line { points, stroke: self.color, width, dash });
    }

    /// Draws a marker with an outline that separates it from the lines below.
    fn draw_marker(&self, scene: &mut Scene, index: usize, at: BackendCoord) {
        for (fill, radius) in [(BACKGROUND, 50), (self.color, 38)] {
            draw_marker(scene, index % 4, at, radius, fill);
        }
    }
}

/// The smallest and largest value.
pub(crate) fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    })
}
