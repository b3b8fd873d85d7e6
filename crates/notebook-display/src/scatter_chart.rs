//! Scatter plots of labeled points.

use std::collections::BTreeMap;

use crate::axes::{self, Axis};
use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::markers::draw_marker;
use crate::number::{Number, grouped, is_drawable, short};
use crate::scene::{Anchor, CLASS_COLORS, PADDING, PX, Scene, TEXT, Text, fit, text_width};

/// Maximum number of points; more would overlap and make the notebook large.
const MAX_POINTS: usize = 5000;
/// Half the width of a point.
const RADIUS: i32 = 24;

/// Draws points `[x, y]`, with one marker and color per class.
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
            let mean = |of: fn(&(f64, f64)) -> f64| {
                short(points.iter().map(of).sum::<f64>() / points.len() as f64)
            };
            let (x, y) = (mean(|point| point.0), mean(|point| point.1));
            let place = if points.len() == 1 { "at" } else { "about" };
            text += &format!("\n  {name}: {} {place} ({x}, {y})", counted(points.len()));
        }
        text
    }

    fn draw(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let below_title = scene.title(&self.title);
        let top = self.legend(&mut scene, below_title) + 12 * PX;
        let height = (width * 3 / 5).clamp(190 * PX, 400 * PX);

        let y = self.axis(&self.y_label, |point| point.1, height / (44 * PX));
        let left = PADDING + axes::left_margin(&y);
        let x = self.x_axis(width - PADDING - left);
        let right = PADDING + x.label_width() / 2;
        let size = (width - right - left, height);
        scene.height = top + height + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        // Alternates between the classes so that none covers all others.
        let longest = self.groups.iter().map(|(_, points)| points.len()).max().unwrap_or(0);
        for turn in 0..longest {
            for (class, (_, points)) in self.groups.iter().enumerate() {
                if let Some(&(x, y)) = points.get(turn) {
                    draw_marker(&mut scene, class, to_pixel(x, y), RADIUS, CLASS_COLORS[class]);
                }
            }
        }
        Ok(scene)
    }
}

impl ScatterChart {
    fn points(&self) -> impl Iterator<Item = &(f64, f64)> {
        self.groups.iter().flat_map(|(_, points)| points)
    }

    /// An axis with a margin at both ends for the markers.
    fn axis(&self, label: &str, of: fn(&(f64, f64)) -> f64, max_steps: i32) -> Axis {
        let low = self.points().map(of).fold(f64::INFINITY, f64::min);
        let high = self.points().map(of).fold(f64::NEG_INFINITY, f64::max);
        let axis = Axis::spanning(label, low, high, max_steps);
        let (start, end) = (axis.range.start, axis.range.end);
        let margin = 0.04 * (end - start);
        Axis { range: start - margin..end + margin, ..axis }
    }

    /// The x axis, with as many ticks as their labels leave room for.
    fn x_axis(&self, width: i32) -> Axis {
        let axis = |max_steps| self.axis(&self.x_label, |point| point.0, max_steps);
        let fits = |axis: &Axis| axis.ticks.len() as i32 * (axis.label_width() + 14 * PX) <= width;
        (2..=width / (50 * PX)).rev().map(axis).find(fits).unwrap_or_else(|| axis(1))
    }

    /// Draws the legend in rows above the plot; returns the y coordinate below it.
    fn legend(&self, scene: &mut Scene, top: i32) -> i32 {
        let (sample, row) = (14 * PX, 20 * PX);
        let (mut left, mut middle) = (PADDING, top + row / 2);
        for (class, (name, _)) in self.groups.iter().enumerate() {
            let name = fit(name, scene.width - 2 * PADDING - sample, TEXT, false);
            let width = sample + text_width(&name, TEXT, false);
            if left > PADDING && left + width > scene.width - PADDING {
                (left, middle) = (PADDING, middle + row);
            }
            draw_marker(scene, class, (left + 5 * PX, middle), 38, CLASS_COLORS[class]);
            scene.text(Text::new(&name, (left + sample, middle), Anchor::Start).centered());
            left += width + 16 * PX;
        }
        middle + row / 2
    }
}

fn counted(points: usize) -> String {
    let plural = if points == 1 { "" } else { "s" };
    format!("{} point{plural}", grouped(&points.to_string()))
}
