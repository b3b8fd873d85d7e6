//! Bar charts: one value per category.

use crate::axes::{self, Axis};
use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::number::{Number, format_value, is_drawable};
use crate::scene::{Anchor, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit, text_width};

/// Draws one horizontal bar per category, from top to bottom in the given order, with its value.
///
/// Horizontal bars leave room for long names.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 100 bars, and for a value that is negative or not
/// finite; the message names the bar.
///
/// # Examples
/// ```
/// # use notebook_display::bar_chart;
/// let figure = bar_chart("Training set", "digit", "images", &[("0", 5923), ("1", 6742)])?;
/// assert_eq!(figure.text(), "Training set: images by digit\n  0: 5923\n  1: 6742");
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn bar_chart<L, N>(
    title: &str,
    category_label: &str,
    value_label: &str,
    bars: &[(L, N)],
) -> Result<Figure>
where
    L: std::fmt::Display,
    N: Number,
{
    let bars: Vec<_> =
        bars.iter().map(|(name, value)| (name.to_string(), value.to_f64())).collect();
    let refuse = |reason: String| Err(Error::Figure(format!("`{title}`: {reason}")));
    if bars.is_empty() || bars.len() > 100 {
        return refuse(format!("expected 1 to 100 bars, found {}", bars.len()));
    }
    if let Some((name, value)) = bars.iter().find(|(_, value)| !is_drawable(*value) || *value < 0.0)
    {
        return refuse(format!("bar `{name}` is {value}, but must be finite and 0 or more"));
    }
    Figure::new(BarChart {
        title: title.to_owned(),
        category_label: category_label.to_owned(),
        value_label: value_label.to_owned(),
        bars,
    })
}

#[derive(Debug)]
struct BarChart {
    title: String,
    category_label: String,
    value_label: String,
    bars: Vec<(String, f64)>,
}

impl Chart for BarChart {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let mut text = format!("{}: {} by {}", self.title, self.value_label, self.category_label);
        for (name, value) in &self.bars {
            text += &format!("\n  {name}: {}", format_value(*value));
        }
        text
    }

    fn draw(&self, width: i32) -> Result<Scene> {
        let count = self.bars.len() as i32;
        let label = text_width(&self.category_label, TEXT, false).min(160 * PX);
        let bar = (label / count + PX).max(22 * PX);
        let mut scene = Scene::new(width, 0);
        let top = scene.title(&self.title) + 4 * PX;
        let y = self.categories(width * 3 / 10);
        let left = PADDING + axes::left_margin(&y);
        let values =
            self.bars.iter().map(|(_, value)| text_width(&format_value(*value), TEXT, false));
        let right = PADDING + values.max().unwrap_or(0) + 6 * PX;
        let size = (width - right - left, count * bar);
        let x = self.values(size.0);
        scene.height = top + size.1 + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        for ((_, value), row) in self.bars.iter().zip(0..) {
            let row = f64::from(row);
            let (start, end) = (to_pixel(0.0, row + 0.15), to_pixel(*value, row + 0.85));
            let size = (end.0 - start.0, end.1 - start.1);
            scene.shapes.push(Shape::Rect { at: start, size, fill: PALETTE[0] });
            let at = (end.0 + 6 * PX, (start.1 + end.1) / 2);
            scene.text(Text::new(&format_value(*value), at, Anchor::Start).centered());
        }
        Ok(scene)
    }
}

impl BarChart {
    /// The category axis: one row per bar, the first at the top.
    fn categories(&self, width: i32) -> Axis {
        let ticks = self
            .bars
            .iter()
            .zip(0..)
            .map(|((name, _), row)| (f64::from(row) + 0.5, fit(name, width, TEXT, false)));
        let (label, ticks) = (self.category_label.clone(), ticks.collect());
        Axis { label, range: self.bars.len() as f64..0.0, ticks, grid: false }
    }

    fn values(&self, width: i32) -> Axis {
        let largest = self.bars.iter().map(|(_, value)| *value).fold(0.0, f64::max);
        let largest = if largest > 0.0 { largest } else { 1.0 };
        Axis::spanning(&self.value_label, 0.0, largest, (width / (80 * PX)).max(2))
    }
}
