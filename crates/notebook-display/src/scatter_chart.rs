//! Scatter plots of labeled points.

use std::collections::BTreeMap;

use plotters_backend::BackendCoord;

use crate::axes::{self, Axis, Scale};
use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::legend::draw_legend;
use crate::markers::{SHAPES, draw_marker};
use crate::number::{Number, grouped, is_drawable, short};
use crate::scene::{Anchor, CLASS_COLORS, PADDING, PX, Scene, Text, fit, text_width};

/// Maximum number of points; more would overlap and make the notebook large.
const MAX_POINTS: usize = 5000;
/// Half the width of a point.
const RADIUS: i32 = 24;

/// Draws points `[x, y]`, with one marker and color per class, whose name also stands at the mean
/// of its points.
///
/// The legend is above the plot.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 5000 points of at most ten classes, one class per point,
/// and for a point that is not two finite numbers; the message names the point.
///
/// # Examples
/// ```
/// # use notebook_display::scatter_chart;
/// let points = [[0.5, 1.0], [2.0, -1.0], [0.7, 1.1]];
/// let figure = scatter_chart("Features", "first", "second", &points, &[3, 8, 3])?;
/// assert_eq!(
///     figure.text(),
///     "Features: 3 points, second by first\n  \
///      3: 2 points about (0.6, 1.05)\n  \
///      8: 1 point at (2, -1)"
/// );
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn scatter_chart<P, N, L>(
    title: &str,
    x_label: &str,
    y_label: &str,
    points: &[P],
    classes: &[L],
) -> Result<Figure>
where
    P: AsRef<[N]>,
    N: Number,
    L: std::fmt::Display + Ord,
{
    let refuse = |reason: String| Err(Error::Figure(format!("`{title}`: {reason}")));
    let count = points.len();
    if count == 0 || count > MAX_POINTS {
        return refuse(format!("expected 1 to {MAX_POINTS} points, found {count}"));
    }
    if classes.len() != count {
        return refuse(format!("found {} classes for {count} points", classes.len()));
    }
    let mut groups = BTreeMap::<&L, Vec<(f64, f64)>>::new();
    for ((point, class), number) in points.iter().zip(classes).zip(1..) {
        let &[x, y] = point.as_ref() else {
            let found = point.as_ref().len();
            return refuse(format!("point {number} has {found} numbers, expected x and y"));
        };
        let (x, y) = (x.to_f64(), y.to_f64());
        if !is_drawable(x) || !is_drawable(y) {
            return refuse(format!("point {number} is ({x}, {y}), but must be finite"));
        }
        groups.entry(class).or_default().push((x, y));
    }
    if groups.len() > CLASS_COLORS.len() {
        let (found, max) = (groups.len(), CLASS_COLORS.len());
        return refuse(format!("expected at most {max} classes, found {found}"));
    }
    Figure::new(ScatterChart {
        title: title.to_owned(),
        x_label: x_label.to_owned(),
        y_label: y_label.to_owned(),
        groups: groups.into_iter().map(|(class, points)| (class.to_string(), points)).collect(),
    })
}

#[derive(Debug)]
struct ScatterChart {
    title: String,
    x_label: String,
    y_label: String,
    groups: Vec<(String, Vec<(f64, f64)>)>,
}

impl Chart for ScatterChart {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let Self { title, x_label, y_label, .. } = self;
        let count = self.points().count();
        let mut text = format!("{title}: {}, {y_label} by {x_label}", counted(count));
        for (name, points) in &self.groups {
            let (x, y) = mean(points);
            let (x, y) = (short(x), short(y));
            let place = if points.len() == 1 { "at" } else { "about" };
            text += &format!("\n  {name}: {} {place} ({x}, {y})", counted(points.len()));
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let below_title = scene.title(&self.title);
        let names = self.groups.iter().map(|(name, _)| name.as_str());
        let top = 12 * PX
            + draw_legend(&mut scene, below_title, names, 14 * PX, |scene, class, (x, y)| {
                draw_marker(scene, shape(class), (x + 5 * PX, y), 38, CLASS_COLORS[class]);
            });
        let height = (width * 3 / 5).clamp(190 * PX, 400 * PX);

        let y = self.axis(&self.y_label, |point| point.1, height / (44 * PX));
        let left = PADDING + axes::left_margin(&y);
        let x_axis = |steps| self.axis(&self.x_label, |point| point.0, steps);
        let x = Axis::fitting(width - PADDING - left, x_axis);
        let right = PADDING + x.label_width() / 2;
        let size = (width - right - left, height);
        scene.height = top + height + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        // Alternates between the classes so that none covers all others.
        let longest = self.groups.iter().map(|(_, points)| points.len()).max().unwrap_or(0);
        for turn in 0..longest {
            for (class, (_, points)) in self.groups.iter().enumerate() {
                if let Some(&(x, y)) = points.get(turn) {
                    let (at, color) = (to_pixel(x, y), CLASS_COLORS[class]);
                    draw_marker(&mut scene, shape(class), at, RADIUS, color);
                }
            }
        }
        self.draw_names(&mut scene, (left, top), size, &to_pixel);
        Ok(scene)
    }
}

impl ScatterChart {
    /// Writes the name of each class at the mean of its points, or as near as there is room.
    fn draw_names(
        &self,
        scene: &mut Scene,
        (left, top): BackendCoord,
        (width, height): (i32, i32),
        to_pixel: impl Fn(f64, f64) -> BackendCoord,
    ) {
        const SIZE: i32 = 18 * PX;
        let alternating = |steps: i32| (0..=steps).flat_map(|step| [step, -step]);
        let (top, bottom) = (top + SIZE, top + height - SIZE);
        let mut taken: Vec<(BackendCoord, i32)> = Vec::new();
        for (name, points) in &self.groups {
            let name = fit(name, width / 4, SIZE, true);
            let half = text_width(&name, SIZE, true) / 2 + 2 * PX;
            let (first, last) = (left + half, left + width - half);
            let (x, y) = mean(points);
            let (x, y) = to_pixel(x, y);
            let (x, y) = (x.clamp(first, last), y.clamp(top, bottom));
            let is_free = |&(x, y): &BackendCoord| {
                let apart = |((other_x, other_y), other_half): &(BackendCoord, i32)| {
                    (y - other_y).abs() >= SIZE || (x - other_x).abs() >= half + other_half
                };
                let inside = (first..=last).contains(&x) && (top..=bottom).contains(&y);
                inside && taken.iter().all(apart)
            };
            // The nearest row above or below, if need be in another column.
            let places = alternating(2).flat_map(|column| {
                let rows = alternating(height / SIZE);
                rows.map(move |row| (x + 2 * half * column, y + row * SIZE))
            });
            let at = { places }.find(is_free).unwrap_or((x, y));
            taken.push((at, half));
            let text = Text::new(&name, at, Anchor::Middle);
            scene.text(Text { size: SIZE, bold: true, halo: true, ..text }.centered());
        }
    }

    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.groups.iter().flat_map(|(_, points)| points)
    }

    /// An axis with room at both ends for the markers.
    fn axis(&self, label: &str, of: fn(&(f64, f64)) -> f64, max_steps: i32) -> Axis {
        let low = self.points().map(of).fold(f64::INFINITY, f64::min);
        let high = self.points().map(of).fold(f64::NEG_INFINITY, f64::max);
        Axis::around(label, Scale::Linear, (low, high), max_steps)
    }
}

/// The marker shape of a class. Similar colors, such as the two blues, have different shapes.
fn shape(class: usize) -> usize {
    class + class / SHAPES
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let mean = |of: fn(&(f64, f64)) -> f64| {
        points.iter().map(|point| of(point) / points.len() as f64).sum::<f64>()
    };
    (mean(|point| point.0), mean(|point| point.1))
}

fn counted(points: usize) -> String {
    let plural = if points == 1 { "" } else { "s" };
    format!("{} point{plural}", grouped(&points.to_string()))
}
