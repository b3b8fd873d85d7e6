//! Axes with round ticks, drawn by plotters.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use plotters_backend::BackendCoord;

use crate::error::{Error, Result};
use crate::number::grouped;
use crate::scene::{self, Backend, PX, Scene, TEXT, fit, text_width};

/// How an axis maps values to lengths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scale {
    Linear,
    /// Linear, for whole numbers such as epochs: no ticks between them.
    Whole,
    Log,
}

/// An axis: its label, the values at its ends, and its ticks.
#[derive(Clone)]
pub(crate) struct Axis {
    pub label: String,
    pub scale: Scale,
    pub range: Range<f64>,
    pub ticks: Vec<(f64, String)>,
    /// Whether grid lines extend the ticks across the plot.
    pub grid: bool,
}

impl Axis {
    /// A linear axis that ends on round numbers, with at most `max_steps` steps.
    pub fn enclosing(label: &str, low: f64, high: f64, max_steps: i32) -> Self {
        let (low, high) = non_empty_range(low, high);
        let step = round_step((high - low) / f64::from(max_steps.max(1)));
        let range = (low / step).floor() * step..(high / step).ceil() * step;
        let ticks = linear_ticks(&range, step);
        Self { label: label.to_owned(), scale: Scale::Linear, range, ticks, grid: true }
    }

    /// An axis that ends a little outside the values, with ticks at round numbers: at most
    /// `max_steps` of them unless the axis is very short.
    pub fn around(label: &str, scale: Scale, (low, high): (f64, f64), max_steps: i32) -> Self {
        const MARGIN: f64 = 0.03;
        let max_steps = max_steps.max(1);
        let (range, ticks) = match scale {
            Scale::Log => {
                let span = high.ln() - low.ln();
                let margin = if span > 0.0 { (span * MARGIN).exp() } else { 2.0 };
                let range = (low / margin).max(f64::MIN_POSITIVE)..(high * margin).min(f64::MAX);
                let ticks = log_ticks(&range, max_steps);
                (range, ticks)
            }
            Scale::Whole => {
                let margin = ((high - low) * MARGIN).max(0.25);
                let step = round_step(((high - low) / f64::from(max_steps)).max(1.0));
                let range = low - margin..high + margin;
                let ticks = linear_ticks(&range, step);
                (range, ticks)
            }
            Scale::Linear => {
                let (low, high) = non_empty_range(low, high);
                let margin = (high - low) * MARGIN;
                let range = low - margin..high + margin;
                let ticks = linear_ticks(&range, round_step((high - low) / f64::from(max_steps)));
                (range, ticks)
            }
        };
        Self { label: label.to_owned(), scale, range, ticks, grid: scale != Scale::Whole }
    }

    /// The axis with the most steps whose tick labels fit into a width.
    pub fn fitting(width: i32, with_steps: impl Fn(i32) -> Self) -> Self {
        let fits = |axis: &Self| axis.ticks.len() as i32 * (axis.label_width() + 14 * PX) <= width;
        let max_steps = (width / (50 * PX)).max(2);
        (2..=max_steps).rev().map(&with_steps).find(fits).unwrap_or_else(|| with_steps(1))
    }

    /// Width of the widest tick label.
    pub fn label_width(&self) -> i32 {
        self.ticks.iter().map(|(_, text)| text_width(text, TEXT, false)).max().unwrap_or(0)
    }

    /// Where a value lies on an axis of this length.
    pub fn offset(&self, value: f64, length: i32) -> i32 {
        let Range { start, end } = self.range;
        let fraction = match self.scale {
            Scale::Log => (value.ln() - start.ln()) / (end.ln() - start.ln()),
            Scale::Linear | Scale::Whole => (value - start) / (end - start),
        };
        (fraction * f64::from(length)).round() as i32
    }
}

/// A plotters coordinate with custom ticks: plotters' own are not known before the margins, which
/// depend on their labels.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + self.offset(*value, end - start)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let is_minor = hint.weight().allow_light_points();
        let ticks = if is_minor { &[] } else { &self.ticks[..] };
        ticks.iter().map(|(value, _)| *value).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let tick = self.ticks.iter().find(|(tick, _)| tick == value);
        tick.map_or_else(String::new, |(_, text)| text.clone())
    }
}

/// The multiples of a round step in a range.
fn linear_ticks(range: &Range<f64>, step: f64) -> Vec<(f64, String)> {
    let format = NumberFormat::new(step, range.start.abs().max(range.end.abs()));
    // A tick at an end of the range may lie outside by a rounding error.
    let (first, last) =
        ((range.start / step - 1e-6).ceil() as i64, (range.end / step + 1e-6).floor() as i64);
    let tick = |index: i64| {
        let value = index as f64 * step;
        (value, format.format(value))
    };
    (first..=last).map(tick).collect()
}

/// Powers of ten in a range, with 2 and 5 times them if there is room; where powers of ten are too
/// far apart, the multiples of a round step.
fn log_ticks(range: &Range<f64>, max_steps: i32) -> Vec<(f64, String)> {
    let Range { start, end } = *range;
    if end / start < 10.0 {
        return linear_ticks(range, round_step((end - start) / f64::from(max_steps)));
    }
    let (first, last) = (start.log10().floor() as i32, end.log10().floor() as i32);
    let inside = |factors: &[u32], every: usize| -> Vec<(u32, i32)> {
        let powers = (first..=last).filter(|power| power.rem_euclid(every as i32) == 0);
        let numbers = powers.flat_map(|power| factors.iter().map(move |factor| (*factor, power)));
        numbers.filter(|(factor, power)| range.contains(&scaled(*factor, *power))).collect()
    };
    let few = |ticks: &Vec<(u32, i32)>| ticks.len() as i32 <= max_steps + 1;
    let candidates = std::iter::once(inside(&[1, 2, 5], 1)).chain((1..).map(|n| inside(&[1], n)));
    let ticks = { candidates }.find(few).unwrap_or_default();
    let is_plain = |(_, power): &(u32, i32)| (-3..=5).contains(power);
    let plain = ticks.iter().all(is_plain);
    let tick = |(factor, power)| (scaled(factor, power), log_label(factor, power, plain));
    ticks.into_iter().map(tick).collect()
}

fn scaled(factor: u32, power: i32) -> f64 {
    f64::from(factor) * 10_f64.powi(power)
}

/// A number as `0.002`, or as `2·10⁻³` unless `plain`.
fn log_label(factor: u32, power: i32, plain: bool) -> String {
    if plain || power == 0 {
        let decimals = usize::try_from(-power).unwrap_or(0);
        return grouped(&format!("{:.decimals$}", scaled(factor, power)));
    }
    let superscript = |c: char| match c {
        '-' => '⁻',
        _ => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][c as usize - '0' as usize],
    };
    let power: String = power.to_string().chars().map(superscript).collect();
    if factor == 1 { format!("10{power}") } else { format!("{factor}·10{power}") }
}

/// Smaller magnitudes count as 0: floats there have too few digits for round ticks.
const TINY: f64 = 1e-300;

/// The range of the values, widened if they are all (nearly) equal.
fn non_empty_range(low: f64, high: f64) -> (f64, f64) {
    let magnitude = low.abs().max(high.abs());
    if magnitude > TINY && high - low > magnitude * 1e-9 {
        return (low, high);
    }
    let margin = if magnitude > TINY { magnitude * 0.1 } else { 1.0 };
    (low - margin, high + margin)
}

/// The smallest number of the form 1, 2 or 5 times a power of ten that is at least `step`.
pub(crate) fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= step * 0.999_999);
    factor.unwrap_or(10.0) * power
}

/// The number format of an axis.
struct NumberFormat {
    scientific: bool,
    decimals: usize,
}

impl NumberFormat {
    fn new(step: f64, largest: f64) -> Self {
        let scientific = largest >= 1e7 || step < 1e-5;
        let resolution = if scientific { step / largest } else { step };
        Self { scientific, decimals: (-resolution.log10() - 1e-9).ceil().max(0.0) as usize }
    }

    fn format(&self, value: f64) -> String {
        let value = if value == 0.0 { 0.0 } else { value }; // not "-0"
        match self.scientific {
            true if value == 0.0 => "0".to_owned(),
            true => format!("{value:.*e}", self.decimals),
            false => grouped(&format!("{value:.*}", self.decimals)),
        }
    }
}

/// Height below a plot for tick labels and axis label.
pub(crate) const BOTTOM_MARGIN: i32 = 42 * PX;

/// Width left of a plot for tick labels and axis label.
pub(crate) fn left_margin(y: &Axis) -> i32 {
    y.label_width() + if y.label.is_empty() { 10 * PX } else { 32 * PX }
}

/// Draws two axes for a plot area with this top left corner and size; their labels are outside it.
/// Returns the map from data to drawing coordinates.
pub(crate) fn draw(
    scene: &mut Scene,
    (left, top): BackendCoord,
    (width, height): (i32, i32),
    x: &Axis,
    y: &Axis,
) -> Result<impl Fn(f64, f64) -> BackendCoord + use<>> {
    let outer = (left - left_margin(y), top, left + width, top + height + BOTTOM_MARGIN);
    let area = Backend(scene).into_drawing_area();
    let area = area.shrink((outer.0, outer.1), (outer.2 - outer.0, outer.3 - outer.1));
    let spec =
        draw_mesh(&area, x, y, (width, height)).map_err(|err| Error::Figure(err.to_string()))?;
    Ok(move |x, y| spec.translate(&(x, y)))
}

type DrawError = DrawingAreaErrorKind<std::convert::Infallible>;

fn draw_mesh(
    area: &DrawingArea<Backend, Shift>,
    x: &Axis,
    y: &Axis,
    (width, height): (i32, i32),
) -> std::result::Result<Cartesian2d<Axis, Axis>, DrawError> {
    let font = ("sans-serif", f64::from(TEXT)).into_font();
    let mut chart = ChartBuilder::on(area)
        .set_label_area_size(LabelAreaPosition::Bottom, BOTTOM_MARGIN)
        .set_label_area_size(LabelAreaPosition::Left, left_margin(y))
        .build_cartesian_2d(x.clone(), y.clone())?;
    let mut mesh = chart.configure_mesh();
    if !x.grid {
        mesh.disable_x_mesh();
    }
    if !y.grid {
        mesh.disable_y_mesh();
    }
    mesh.bold_line_style(color(scene::GRID_COLOR).stroke_width(PX as u32))
        .axis_style(color(scene::MUTED).stroke_width(PX as u32))
        .set_all_tick_mark_size(3 * PX)
        .label_style(font.color(&color(scene::MUTED)))
        .axis_desc_style(font.color(&color(scene::TEXT_COLOR)))
        .x_desc(fit(&x.label, width, TEXT, false))
        .y_desc(fit(&y.label, height, TEXT, false))
        .draw()?;
    Ok(chart.as_coord_spec().clone())
}

fn color((red, green, blue): scene::Color) -> RGBColor {
    RGBColor(red, green, blue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        Axis::enclosing("", low, high, 5).ticks.into_iter().map(|(_, text)| text).collect()
    }

    #[test]
    fn ticks_are_round_and_enclose_the_data() {
        assert_eq!(labels(95.94, 99.2), ["95", "96", "97", "98", "99", "100"]);
        assert_eq!(labels(0.004, 0.13), ["0.00", "0.05", "0.10", "0.15"]);
        assert_eq!(labels(-3.0, 4.0), ["-4", "-2", "0", "2", "4"]);
        assert_eq!(labels(0.0, 60_000.0), ["0", "20,000", "40,000", "60,000"]);
    }

    #[test]
    fn tiny_and_huge_values_have_distinct_short_labels() {
        assert_eq!(labels(0.0, 1e-9), ["0", "2.0e-10", "4.0e-10", "6.0e-10", "8.0e-10", "1.0e-9"]);
        assert_eq!(labels(1e30, 3e30), ["1.0e30", "1.5e30", "2.0e30", "2.5e30", "3.0e30"]);
    }

    #[test]
    fn a_constant_lies_inside_its_axis() {
        for value in [0.0, 0.1, -7.0, 1e-30, 1e30] {
            let axis = Axis::enclosing("", value, value, 5);
            assert!(
                axis.range.start < value && value < axis.range.end,
                "{value}: {:?}",
                axis.range
            );
            assert!(axis.ticks.len() >= 2, "{:?}", axis.ticks);
        }
    }
}
