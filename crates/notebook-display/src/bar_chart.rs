//! Bar charts: one value per category.

use crate::axes::{self, Axis, Scale};
use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::number::{Number, comparable, is_drawable, until_end};
use crate::scene::{Anchor, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit, text_width};

/// Draws one horizontal bar per category, from top to bottom in the given order, with its value.
///
/// Horizontal bars leave room for long names. Names and values are anything that yields them. Whole
/// values are written in full, others with the same number of decimals.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 100 bars with a name and a value each, and for a value
/// that is negative or not finite; the message names the bar.
///
/// # Examples
/// ```
/// # use notebook_display::bar_chart;
/// let figure = bar_chart("Training set", "digit", "images", 0..2, [5923, 6742])?;
/// assert_eq!(figure.text(), "Training set: images by digit\n  0: 5923\n  1: 6742");
///
/// let figure = bar_chart("A digit", "class", "probability", ["one", "two"], [0.9831, 0.0169])?;
/// assert!(figure.text().ends_with("one: 0.983\n  two: 0.017"));
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn bar_chart<L, N>(
    title: &str,
    category_label: &str,
    value_label: &str,
    names: impl IntoIterator<Item = L>,
    values: impl IntoIterator<Item = N>,
) -> Result<Figure>
where
    L: std::fmt::Display,
    N: Number,
{
    let values: Vec<f64> = values.into_iter().map(Number::to_f64).collect();
    let names = until_end(names, values.len()).map(|name| name.to_string()).collect();
    let [title, category_label, value_label] =
        [title, category_label, value_label].map(str::to_owned);
    let chart = BarChart { title, category_label, value_label, names, values };
    chart.check().map_err(|reason| Error::Figure(format!("`{}`: {reason}", chart.title)))?;
    Figure::new(chart)
}

#[derive(Debug)]
struct BarChart {
    title: String,
    category_label: String,
    value_label: String,
    names: Vec<String>,
    values: Vec<f64>,
}

impl BarChart {
    fn check(&self) -> Result<(), String> {
        let count = self.values.len();
        if count == 0 || count > 100 {
            return Err(format!("expected 1 to 100 bars, found {count}"));
        }
        if self.names.len() != count {
            return Err(format!("found {} names for {count} values", self.names.len()));
        }
        let mut bars = self.names.iter().zip(&self.values);
        match bars.find(|(_, value)| !is_drawable(**value) || **value < 0.0) {
            Some((name, value)) => {
                Err(format!("bar `{name}` is {value}, but must be finite and 0 or more"))
            }
            None => Ok(()),
        }
    }

    /// The category axis: one row per bar, the first at the top.
    fn categories(&self, width: i32) -> Axis {
        let ticks = self
            .names
            .iter()
            .zip(0..)
            .map(|(name, row)| (f64::from(row) + 0.5, fit(name, width, TEXT, false)));
        let (label, ticks) = (self.category_label.clone(), ticks.collect());
        Axis {
            label,
            scale: Scale::Linear,
            range: self.names.len() as f64..0.0,
            ticks,
            grid: false,
        }
    }

    fn values_axis(&self, width: i32) -> Axis {
        let largest = self.values.iter().copied().fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest } else { 1.0 };
        Axis::enclosing(&self.value_label, 0.0, largest, (width / (80 * PX)).max(2))
    }
}

impl Chart for BarChart {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let mut text = format!("{}: {} by {}", self.title, self.value_label, self.category_label);
        for (name, value) in self.names.iter().zip(comparable(&self.values)) {
            text += &format!("\n  {name}: {value}");
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        let count = self.values.len() as i32;
        let label = text_width(&self.category_label, TEXT, false).min(160 * PX);
        let bar = (label / count + PX).max(22 * PX);
        let mut scene = Scene::new(width, 0);
        let top = scene.title(&self.title) + 4 * PX;
        let y = self.categories(width * 3 / 10);
        let left = PADDING + axes::left_margin(&y);
        let numbers = comparable(&self.values);
        let widest = numbers.iter().map(|number| text_width(number, TEXT, false)).max();
        let right = PADDING + widest.unwrap_or(0) + 6 * PX;
        let size = (width - right - left, count * bar);
        let x = self.values_axis(size.0);
        scene.height = top + size.1 + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        for ((value, number), row) in self.values.iter().zip(&numbers).zip(0..) {
            let row = f64::from(row);
            let (start, end) = (to_pixel(0.0, row + 0.15), to_pixel(*value, row + 0.85));
            let size = (end.0 - start.0, end.1 - start.1);
            scene.shapes.push(Shape::Rect { at: start, size, fill: PALETTE[0] });
            let at = (end.0 + 6 * PX, (start.1 + end.1) / 2);
            scene.text(Text::new(number, at, Anchor::Start).centered());
        }
        Ok(scene)
    }
}
