//! Points in the plane, each of a class.

use std::collections::BTreeMap;

use crate::axes::{self, Axis};
use crate::figure::{Chart, Figure};
use crate::marks::mark;
use crate::number::{Number, drawable, grouped, short};
use crate::scene::{Anchor, CLASSES, PADDING, PX, Scene, TEXT, Text, fit, text_width};
use crate::error::{Error, Result};

/// At most so many points: more would hide one another and make the notebook large.
const MOST: usize = 5000;
/// Half the width of a point.
const RADIUS: i32 = 24;

/// Draws points in the plane, `[x, y]` each, marked by the class that each belongs to.
///
/// Classes differ by colour and form; their names stand above the plot.
///
/// # Errors
///
/// [`Error::Figure`] without points, for more than 5000 or of more than ten classes, unless there
/// is one class for each point, for a point that is not two numbers, and for a number that is not
/// finite; the message names the point.
///
/// # Examples
///
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
    if count == 0 || count > MOST {
        return refuse(format!("{count} points given, 1 to {MOST} can be drawn"));
    }
    if classes.len() != count {
        return refuse(format!("{} classes for {count} points", classes.len()));
    }
    let mut groups = BTreeMap::<&L, Vec<(f64, f64)>>::new();
    for ((point, class), number) in points.iter().zip(classes).zip(1..) {
        let &[x, y] = point.as_ref() else {
            let found = point.as_ref().len();
            return refuse(format!("point {number} has {found} numbers, not x and y"));
        };
        let (x, y) = (x.to_f64(), y.to_f64());
        if !drawable(x) || !drawable(y) {
            return refuse(format!("point {number} is ({x}, {y})"));
        }
        groups.entry(class).or_default().push((x, y));
    }
    if groups.len() > CLASSES.len() {
        let (count, most) = (groups.len(), CLASSES.len());
        return refuse(format!("points of {count} classes given, {most} can be told apart"));
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
        let left = PADDING + axes::left_of(&y);
        let x = self.x_axis(width - PADDING - left);
        let right = PADDING + x.label_width() / 2;
        let size = (width - right - left, height);
        scene.height = top + height + axes::BELOW + PADDING;

        let place = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        // In turns, so that no class lies on top of all others.
        let longest = self.groups.iter().map(|(_, points)| points.len()).max().unwrap_or(0);
        for turn in 0..longest {
            for (class, (_, points)) in self.groups.iter().enumerate() {
                if let Some(&(x, y)) = points.get(turn) {
                    mark(&mut scene, class, place(x, y), RADIUS, CLASSES[class]);
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

    /// An axis with some room at both ends, where points may lie.
    fn axis(&self, label: &str, of: fn(&(f64, f64)) -> f64, most: i32) -> Axis {
        let low = self.points().map(of).fold(f64::INFINITY, f64::min);
        let high = self.points().map(of).fold(f64::NEG_INFINITY, f64::max);
        let axis = Axis::spanning(label, low, high, most);
        let (start, end) = (axis.range.start, axis.range.end);
        let room = 0.04 * (end - start);
        Axis { range: start - room..end + room, ..axis }
    }

    /// As many steps as their labels leave room for.
    fn x_axis(&self, width: i32) -> Axis {
        let axis = |most| self.axis(&self.x_label, |point| point.0, most);
        let fits = |axis: &Axis| axis.ticks.len() as i32 * (axis.label_width() + 14 * PX) <= width;
        (2..=width / (50 * PX)).rev().map(axis).find(fits).unwrap_or_else(|| axis(1))
    }

    /// Draws the names in rows above the plot, and returns the height below them.
    fn legend(&self, scene: &mut Scene, top: i32) -> i32 {
        let (sample, row) = (14 * PX, 20 * PX);
        let (mut left, mut middle) = (PADDING, top + row / 2);
        for (class, (name, _)) in self.groups.iter().enumerate() {
            let name = fit(name, scene.width - 2 * PADDING - sample, TEXT, false);
            let width = sample + text_width(&name, TEXT, false);
            if left > PADDING && left + width > scene.width - PADDING {
                (left, middle) = (PADDING, middle + row);
            }
            mark(scene, class, (left + 5 * PX, middle), 38, CLASSES[class]);
            scene.text(Text::new(&name, (left + sample, middle), Anchor::Start).centred());
            left += width + 16 * PX;
        }
        middle + row / 2
    }
}

fn counted(points: usize) -> String {
    let plural = if points == 1 { "" } else { "s" };
    format!("{} point{plural}", grouped(&points.to_string()))
}
