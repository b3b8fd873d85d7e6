//! Line charts: losses and accuracies over epochs or steps, and curves over any numbers.

use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::number::{Number, is_drawable, short, until_end};
use crate::plot::{Curve, Kind, Plot, extent};
use crate::scene::{PALETTE, Scene};

/// Draws one line per series over the positions 1, 2, 3, …, such as epochs or steps.
///
/// Series differ by color, dash and marker. The legend is above the plot; a single series has
/// none, because the label of the y axis names it. [`LineChart`] has other positions, logarithmic
/// axes, marks and error bars.
///
/// # Errors
/// Those of [`LineChart::draw`].
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
    let chart = LineChart::new(title, x_label, y_label);
    series.iter().fold(chart, |chart, (name, values)| chart.line(name, 1.., values.as_ref())).draw()
}

/// A chart of lines and points over numbers, built step by step.
///
/// Both axes have round ticks. The x and y values of a series are anything that yields numbers:
/// slices, ranges, or an iterator over a history.
///
/// # Examples
/// A range test, its choice marked:
/// ```
/// # use notebook_display::LineChart;
/// let (rates, losses) = ([1e-4, 1e-3, 1e-2, 1e-1], [2.3, 1.1, 0.4, 3.0]);
/// let figure = LineChart::new("Range test", "learning rate", "loss")
///     .log_x()
///     .line("training", &rates, &losses)
///     .mark(0.004, "chosen")
///     .draw()?;
/// assert!(figure.text().ends_with("at 0.004: chosen"));
/// # Ok::<(), notebook_display::Error>(())
/// ```
///
/// Losses on a logarithmic axis, over the epochs 1, 2, 3, …:
/// ```
/// # use notebook_display::LineChart;
/// # let (training, test) = ([0.6, 0.1, 0.03], [0.4, 0.1, 0.05]);
/// LineChart::new("Loss", "epoch", "cross-entropy")
///     .log_y()
///     .line("training", 1.., &training)
///     .line("test", 1.., &test)
///     .draw()?;
/// # Ok::<(), notebook_display::Error>(())
/// ```
///
/// Measurements beside what they should be:
/// ```
/// # use notebook_display::LineChart;
/// # let (confidences, accuracies, errors) = ([55.0, 95.0], [30.0, 96.0], [7.5, 1.2]);
/// LineChart::new("Calibration", "confidence (%)", "correct (%)")
///     .reference("perfectly calibrated", [0, 100], [0, 100])
///     .points_with_errors("test images", &confidences, &accuracies, &errors)
///     .draw()?;
/// # Ok::<(), notebook_display::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a chart is drawn by `draw`"]
pub struct LineChart(Plot);

impl LineChart {
    /// An empty chart with linear axes.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Self {
        let [title, x_label, y_label] = [title, x_label, y_label].map(str::to_owned);
        Self(Plot { title, x_label, y_label, ..Plot::default() })
    }

    /// Makes the x axis logarithmic.
    pub fn log_x(self) -> Self {
        Self(Plot { log_x: true, ..self.0 })
    }

    /// Makes the y axis logarithmic.
    pub fn log_y(self) -> Self {
        Self(Plot { log_y: true, ..self.0 })
    }

    /// Adds a line. An endless `xs` such as `1..` is as long as `ys`.
    pub fn line<X: Number, Y: Number>(
        self,
        name: &str,
        xs: impl IntoIterator<Item = X>,
        ys: impl IntoIterator<Item = Y>,
    ) -> Self {
        self.curve(name, xs, ys, Kind::Line)
    }

    /// Adds a line to compare others with, such as the diagonal: gray, dashed, without markers.
    pub fn reference<X: Number, Y: Number>(
        self,
        name: &str,
        xs: impl IntoIterator<Item = X>,
        ys: impl IntoIterator<Item = Y>,
    ) -> Self {
        self.curve(name, xs, ys, Kind::Reference)
    }

    /// Adds points with error bars, which extend by the error above and below each point.
    pub fn points_with_errors<X: Number, Y: Number, E: Number>(
        self,
        name: &str,
        xs: impl IntoIterator<Item = X>,
        ys: impl IntoIterator<Item = Y>,
        errors: impl IntoIterator<Item = E>,
    ) -> Self {
        let errors = errors.into_iter().map(Number::to_f64).collect();
        self.curve(name, xs, ys, Kind::Points { errors })
    }

    /// Marks a position on the x axis by a vertical line with a text above it.
    pub fn mark(mut self, x: impl Number, text: &str) -> Self {
        self.0.marks.push((x.to_f64(), text.to_owned()));
        self
    }

    fn curve<X: Number, Y: Number>(
        mut self,
        name: &str,
        xs: impl IntoIterator<Item = X>,
        ys: impl IntoIterator<Item = Y>,
        kind: Kind,
    ) -> Self {
        let ys: Vec<f64> = ys.into_iter().map(Number::to_f64).collect();
        let xs = until_end(xs, ys.len()).map(Number::to_f64).collect();
        self.0.curves.push(Curve { name: name.to_owned(), xs, ys, kind });
        self
    }

    /// Draws the chart.
    ///
    /// # Errors
    /// [`Error::Figure`] unless there are 1 to 7 series; for one that is empty or whose values and
    /// positions differ in number; and for a number that is not finite or, on a logarithmic axis,
    /// not positive. The message names the series and the position.
    pub fn draw(self) -> Result<Figure> {
        let title = &self.0.title;
        self.check().map_err(|reason| Error::Figure(format!("`{title}`: {reason}")))?;
        Figure::new(self)
    }

    fn check(&self) -> Result<(), String> {
        let (count, max) = (self.0.curves.len(), PALETTE.len());
        if count == 0 || count > max {
            return Err(format!("expected 1 to {max} series, found {count}"));
        }
        for curve in &self.0.curves {
            self.check_curve(curve)
                .map_err(|reason| format!("series `{}` {reason}", curve.name))?;
        }
        let refused =
            self.0.marks.iter().find_map(|(x, text)| Some((text, refusal(*x, self.0.log_x)?)));
        refused.map_or(Ok(()), |(text, reason)| Err(format!("the mark `{text}` is at {reason}")))
    }

    fn check_curve(&self, Curve { xs, ys, kind, .. }: &Curve) -> Result<(), String> {
        let count = ys.len();
        if count == 0 {
            return Err("is empty".to_owned());
        }
        if xs.len() != count {
            return Err(format!("has {count} values for {} positions", xs.len()));
        }
        let refused = |numbers: &[f64], log: bool| {
            let mut numbers = numbers.iter().zip(1..);
            numbers.find_map(|(number, position)| Some((refusal(*number, log)?, position)))
        };
        if let Some((reason, position)) = refused(ys, self.0.log_y) {
            return Err(format!("is {reason} at position {position}"));
        }
        if let Some((reason, position)) = refused(xs, self.0.log_x) {
            return Err(format!("has the position {reason} (number {position})"));
        }
        let Kind::Points { errors } = kind else { return Ok(()) };
        if errors.len() != count {
            return Err(format!("has {} errors for {count} values", errors.len()));
        }
        match errors.iter().find(|error| !is_drawable(**error) || **error < 0.0) {
            Some(error) => Err(format!("has the error {error}, but must be finite and 0 or more")),
            None => Ok(()),
        }
    }
}

/// The number and why it cannot be drawn, if so.
fn refusal(number: f64, log: bool) -> Option<String> {
    match number {
        _ if !is_drawable(number) => Some(number.to_string()),
        _ if log && number <= 0.0 => {
            Some(format!("{number}, which a logarithmic axis cannot show,"))
        }
        _ => None,
    }
}

impl Chart for LineChart {
    fn title(&self) -> &str {
        &self.0.title
    }

    fn describe(&self) -> String {
        let Plot { title, x_label, y_label, .. } = &self.0;
        let (first, last) = extent(self.0.curves.iter().flat_map(|curve| curve.xs.iter().copied()));
        let (first, last) = (short(first), short(last));
        let mut text = format!("{title}: {y_label} by {x_label}, {first} to {last}");
        for Curve { name, ys, kind, .. } in &self.0.curves {
            let (low, high) = extent(ys.iter().copied());
            let [first, last, low, high] = [ys[0], ys[ys.len() - 1], low, high].map(short);
            text += &format!("\n  {name}: {first} to {last}, between {low} and {high}");
            if let Kind::Points { errors } = kind {
                let (_, largest) = extent(errors.iter().copied());
                text += &format!(", errors up to {}", short(largest));
            }
        }
        for (x, name) in &self.0.marks {
            text += &format!("\n  at {}: {name}", short(*x));
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        self.0.scene(width)
    }
}
