//! Line charts: losses and accuracies over epochs or steps.

use plotters_backend::BackendCoord;

use crate::axes::{self, Axis};
use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::markers::draw_marker;
use crate::number::{Number, grouped, is_drawable, short};
use crate::scene::{
    Anchor, BACKGROUND, Color, PADDING, PALETTE, PX, Scene, Shape, TEXT, Text, fit, text_width,
};

/// Maximum number of markers per line; more would hide it.
const MAX_MARKERS: usize = 12;
/// Width of a line.
const STROKE: i32 = 18;
/// Length of a line sample in the legend.
const SAMPLE: i32 = 34 * PX;

/// Draws one line per series over the positions 1, 2, 3, …, such as epochs or steps.
///
/// Series differ by color, dash and marker. The legend is above the plot; a single series has
/// none, because the label of the y axis names it.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 7 series, for an empty one, and for a value that is not
/// finite; the message names the series and the position.
///
/// # Examples
/// ```
/// # use notebook_display::line_chart;
/// let (training, test) = (vec![0.1326_f32, 0.0403], vec![0.0561_f32, 0.0387]);
/// let figure = line_chart("Loss", "epoch", "cross-entropy", &[
///     ("training", training),
///     ("test", test),
/// ])?;
/// assert!(figure.text().contains("training: 0.1326 to 0.0403"));
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn line_chart<S, N>(
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[(&str, S)],
) -> Result<Figure>
where
    S: AsRef<[N]>,
    N: Number,
{
    LineChart::new(title, x_label, y_label, series).and_then(Figure::new)
}

/// Draws one line per series over evenly spaced names, such as batch sizes or layers.
///
/// # Errors
/// Those of [`line_chart`], and [`Error::Figure`] unless every series has one value per name.
///
/// # Examples
/// ```
/// # use notebook_display::line_chart_over;
/// let figure = line_chart_over("Step", "batch size", "ms", &[1, 8, 32], &[
///     ("compiled", [0.5, 1.2, 3.4]),
/// ])?;
/// assert!(figure.text().starts_with("Step: ms by batch size, 1 to 32"));
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn line_chart_over<L, S, N>(
    title: &str,
    x_label: &str,
    y_label: &str,
    names: &[L],
    series: &[(&str, S)],
) -> Result<Figure>
where
    L: std::fmt::Display,
    S: AsRef<[N]>,
    N: Number,
{
    let mut chart = LineChart::new(title, x_label, y_label, series)?;
    let has_other_length = |series: &&Series| series.values.len() != names.len();
    if let Some(Series { name, values }) = chart.series.iter().find(has_other_length) {
        let (found, expected) = (values.len(), names.len());
        let reason = format!("series `{name}` has {found} values for {expected} names");
        return Err(Error::Figure(format!("`{title}`: {reason}")));
    }
    chart.names = names.iter().map(L::to_string).collect();
    Figure::new(chart)
}

#[derive(Debug)]
struct Series {
    name: String,
    values: Vec<f64>,
}

#[derive(Debug)]
struct LineChart {
    title: String,
    x_label: String,
    y_label: String,
    /// Names of the positions; empty if they are numbered.
    names: Vec<String>,
    series: Vec<Series>,
}

fn check(title: &str, series: &[Series]) -> Result<()> {
    let refuse = |reason: String| Err(Error::Figure(format!("`{title}`: {reason}")));
    if series.is_empty() || series.len() > PALETTE.len() {
        let (found, max) = (series.len(), PALETTE.len());
        return refuse(format!("expected 1 to {max} series, found {found}"));
    }
    for Series { name, values } in series {
        if values.is_empty() {
            return refuse(format!("series `{name}` is empty"));
        }
        if let Some(index) = values.iter().position(|value| !is_drawable(*value)) {
            let (value, position) = (values[index], index + 1);
            return refuse(format!("series `{name}` is {value} at position {position}"));
        }
    }
    Ok(())
}

impl Chart for LineChart {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let Self { title, x_label, y_label, .. } = self;
        let (first, last) = (self.position(1), self.position(self.length()));
        let mut text = format!("{title}: {y_label} by {x_label}, {first} to {last}");
        for Series { name, values } in &self.series {
            let (first, last) = (values[0], values[values.len() - 1]);
            let (low, high) = extent(values);
            text += &format!(
                "\n  {name}: {} to {}, between {} and {}",
                short(first),
                short(last),
                short(low),
                short(high)
            );
        }
        text
    }

    fn draw(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let below_title = scene.title(&self.title);
        let top = self.legend(&mut scene, below_title) + 12 * PX;
        let height = (width * 2 / 5).clamp(190 * PX, 270 * PX);

        let (low, high) = self.extent();
        let y = Axis::spanning(&self.y_label, low, high, height / (44 * PX));
        let left = PADDING + axes::left_margin(&y);
        let last = self.position(self.length());
        let right = PADDING.max(text_width(&last, TEXT, false) / 2 + 4 * PX);
        let size = (width - right - left, height);
        let x = self.x_axis(size.0);
        scene.height = top + height + axes::BOTTOM_MARGIN + PADDING;

        let to_pixel = axes::draw(&mut scene, (left, top), size, &x, &y)?;
        let lines: Vec<_> = self.series.iter().map(|series| series.points(&to_pixel)).collect();
        for (index, points) in lines.iter().enumerate() {
            Style::new(index).draw_line(&mut scene, points);
        }
        for (index, points) in lines.iter().enumerate() {
            Style::new(index).draw_markers(&mut scene, points);
        }
        Ok(scene)
    }
}

impl LineChart {
    fn new<S, N>(
        title: &str,
        x_label: &str,
        y_label: &str,
        series: &[(&str, S)],
    ) -> Result<LineChart>
    where
        S: AsRef<[N]>,
        N: Number,
    {
        let series: Vec<_> = series
            .iter()
            .map(|(name, values)| Series {
                name: (*name).to_owned(),
                values: values.as_ref().iter().map(|value| value.to_f64()).collect(),
            })
            .collect();
        check(title, &series)?;
        Ok(LineChart {
            title: title.to_owned(),
            x_label: x_label.to_owned(),
            y_label: y_label.to_owned(),
            names: Vec::new(),
            series,
        })
    }

    /// The tick label of a position, counted from 1.
    fn position(&self, number: usize) -> String {
        self.names.get(number - 1).cloned().unwrap_or_else(|| grouped(&number.to_string()))
    }

    fn length(&self) -> usize {
        self.series.iter().map(|series| series.values.len()).max().unwrap_or(0)
    }

    fn extent(&self) -> (f64, f64) {
        let extents = self.series.iter().map(|series| extent(&series.values));
        extents.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), (other_low, other_high)| {
            (low.min(other_low), high.max(other_high))
        })
    }

    /// The x axis: ticks at whole positions, as many as fit, and a margin at both ends.
    fn x_axis(&self, width: i32) -> Axis {
        let length = self.length();
        let widest = |width: i32, name: &String| width.max(text_width(name, TEXT, false));
        let label = self.names.iter().fold(text_width(&self.position(length), TEXT, false), widest);
        let max_ticks = f64::from(width / (label + 14 * PX));
        let step = axes::round_step(((length as f64) / max_ticks.max(1.0)).max(1.0)) as usize;
        let ticks = (step..=length).step_by(step);
        let ticks = ticks.map(|tick| (tick as f64, self.position(tick))).collect();
        let margin = ((length as f64 - 1.0) * 0.03).max(0.25);
        let range = 1.0 - margin..length as f64 + margin;
        Axis { label: self.x_label.clone(), range, ticks, grid: false }
    }

    /// Draws the legend in rows above the plot; returns the y coordinate below it.
    fn legend(&self, scene: &mut Scene, top: i32) -> i32 {
        if self.series.len() < 2 {
            return top;
        }
        let (gap, row) = (8 * PX, 20 * PX);
        let (mut left, mut middle) = (PADDING, top + row / 2);
        for (index, series) in self.series.iter().enumerate() {
            let name = fit(&series.name, scene.width - 2 * PADDING - SAMPLE - gap, TEXT, false);
            let width = SAMPLE + gap + text_width(&name, TEXT, false);
            if left > PADDING && left + width > scene.width - PADDING {
                (left, middle) = (PADDING, middle + row);
            }
            Style::new(index).draw_sample(scene, left, middle);
            let at = (left + SAMPLE + gap, middle);
            scene.text(Text::new(&name, at, Anchor::Start).centered());
            left += width + 22 * PX;
        }
        middle + row / 2
    }
}

impl Series {
    /// The points of the line. Of many values in one column of pixels, the first, minimum, maximum
    /// and last are enough to draw the same line.
    fn points(&self, to_pixel: impl Fn(f64, f64) -> BackendCoord) -> Vec<BackendCoord> {
        let points = (1..).zip(&self.values).map(|(x, y)| to_pixel(f64::from(x), *y));
        let points: Vec<_> = points.collect();
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

/// The color, dash and marker of a series.
struct Style {
    index: usize,
    color: Color,
    dash: &'static [i32],
}

impl Style {
    fn new(index: usize) -> Self {
        const DASHES: [&[i32]; 4] =
            [&[], &[7 * PX, 4 * PX], &[2 * PX, 3 * PX], &[9 * PX, 3 * PX, 2 * PX, 3 * PX]];
        let (color, dash) = (PALETTE[index % PALETTE.len()], DASHES[index % DASHES.len()]);
        Self { index, color, dash }
    }

    /// Dense points are drawn as a thin, solid line; dashes or a thick stroke would hide details.
    fn draw_line(&self, scene: &mut Scene, points: &[BackendCoord]) {
        let dense = points.len() > 100;
        let (width, dash) = if dense { (PX, &[][..]) } else { (STROKE, self.dash) };
        self.push_line(scene, points.to_vec(), width, dash);
    }

    fn draw_markers(&self, scene: &mut Scene, points: &[BackendCoord]) {
        let stride = points.len().div_ceil(MAX_MARKERS).max(1);
        // If not every point has a marker, the markers of different lines are staggered.
        let first = (self.index * stride / 2) % stride;
        for point in points.iter().skip(first).step_by(stride) {
            self.draw_marker(scene, *point);
        }
    }

    fn draw_sample(&self, scene: &mut Scene, left: i32, middle: i32) {
        let points = vec![(left, middle), (left + SAMPLE, middle)];
        self.push_line(scene, points, STROKE, self.dash);
        self.draw_marker(scene, (left + SAMPLE / 2, middle));
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

    /// Draws a marker with a white outline that separates it from the lines below.
    fn draw_marker(&self, scene: &mut Scene, at: BackendCoord) {
        for (fill, radius) in [(BACKGROUND, 50), (self.color, 38)] {
            draw_marker(scene, self.index % 4, at, radius, fill);
        }
    }
}

fn extent(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(*value), high.max(*value))
    })
}
