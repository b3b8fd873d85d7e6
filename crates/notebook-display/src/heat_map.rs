//! Heat maps, such as confusion matrices.

use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::number::{Number, comparable, is_drawable, until_end};
use crate::scene::{
    Anchor, Color, MUTED, PADDING, PX, Scene, Shape, TEXT, TEXT_COLOR, Text, fit, text_width,
};

/// The color of the diagonal.
const DIAGONAL: Color = (0xc6, 0xcc, 0xd3);
const WHITE: Color = (0xff, 0xff, 0xff);

/// Draws a square matrix, such as a confusion matrix, as shaded cells with their numbers.
///
/// Rows and columns have the same names: in a confusion matrix the classes, with the true class as
/// `row_label` and the predicted one as `column_label`. The diagonal, where both agree, is gray and
/// outside the color scale, so that the mistakes stand out.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 50 names with a row and a column each, and for a value
/// that is negative or not finite; the message names the cell.
///
/// # Examples
/// ```
/// # use notebook_display::heat_map;
/// let figure = heat_map("Test set", "true", "predicted", [3, 5], &[[1005, 5], [2, 890]])?;
/// assert!(figure.text().contains("true 3: 1005, 5"));
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn heat_map<L, R, N>(
    title: &str,
    row_label: &str,
    column_label: &str,
    names: impl IntoIterator<Item = L>,
    rows: &[R],
) -> Result<Figure>
where
    L: std::fmt::Display,
    R: AsRef<[N]>,
    N: Number,
{
    let names = until_end(names, rows.len()).map(|name| name.to_string()).collect();
    let rows = rows.iter().map(|row| row.as_ref().iter().map(|value| value.to_f64()).collect());
    let map = HeatMap {
        title: title.to_owned(),
        row_label: row_label.to_owned(),
        column_label: column_label.to_owned(),
        names,
        rows: rows.collect(),
    };
    map.check()?;
    Figure::new(map)
}

#[derive(Debug)]
struct HeatMap {
    title: String,
    row_label: String,
    column_label: String,
    names: Vec<String>,
    rows: Vec<Vec<f64>>,
}

impl HeatMap {
    fn check(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Figure(format!("`{}`: {reason}", self.title)));
        let count = self.names.len();
        if count == 0 || count > 50 {
            return refuse(format!("expected 1 to 50 names, found {count}"));
        }
        if self.rows.len() != count || self.rows.iter().any(|row| row.len() != count) {
            let lengths: Vec<_> = self.rows.iter().map(Vec::len).collect();
            return refuse(format!(
                "{count} names need a {count} × {count} matrix, found rows of length {lengths:?}"
            ));
        }
        for (name, row) in self.names.iter().zip(&self.rows) {
            let bad = self
                .names
                .iter()
                .zip(row)
                .find(|(_, value)| !is_drawable(**value) || **value < 0.0);
            if let Some((column, value)) = bad {
                return refuse(format!(
                    "row `{name}`, column `{column}` is {value}, but must be finite and 0 or more"
                ));
            }
        }
        Ok(())
    }

    fn numbers(&self) -> Vec<Vec<String>> {
        let numbers = comparable(&self.rows.concat());
        numbers.chunks(self.names.len()).map(<[String]>::to_vec).collect()
    }
}

impl Chart for HeatMap {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let Self { title, row_label, column_label, names, .. } = self;
        let columns = names.join(", ");
        let mut text = format!("{title}: rows {row_label}, columns {column_label}: {columns}");
        for (name, row) in names.iter().zip(self.numbers()) {
            text += &format!("\n  {row_label} {name}: {}", row.join(", "));
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        let mut scene = Scene::new(width, 0);
        let count = self.names.len() as i32;
        let names = self.names.iter().map(|name| text_width(name, TEXT, false)).max();
        let names = names.unwrap_or(0).min(width / 5);
        let left = PADDING + names + 30 * PX;
        let cell = ((width - PADDING - left) / count).min((200 * PX / count).max(46 * PX));
        let cell = cell / PX * PX;
        let horizontal = names <= cell - 4 * PX;
        let above = if horizontal { 12 * PX } else { names };
        let top = scene.title(&self.title) + above + 30 * PX;
        let side = cell * count;
        scene.height = top + side + PADDING;
        scene.crop(left + side, &self.title);

        let middle = (left + side / 2, top - above - 20 * PX);
        let label = fit(&self.column_label, side, TEXT, false);
        scene.text(Text::new(&label, middle, Anchor::Middle).centered());
        let middle = (PADDING + 6 * PX, top + side / 2);
        let label = fit(&self.row_label, side, TEXT, false);
        scene.text(Text::new(&label, middle, Anchor::Middle).upwards());
        self.draw_names(&mut scene, (left, top), cell, names, horizontal);
        self.fill_cells(&mut scene, (left, top), cell);
        Ok(scene)
    }
}

impl HeatMap {
    /// Draws the names left of the rows and above the columns; the latter read upwards unless
    /// `horizontal`.
    fn draw_names(
        &self,
        scene: &mut Scene,
        (left, top): (i32, i32),
        cell: i32,
        width: i32,
        horizontal: bool,
    ) {
        let size = TEXT.min(cell * 9 / 10);
        let name = |text: &str, at, anchor| {
            let text = fit(text, width, size, false);
            Text { fill: MUTED, size, ..Text::new(&text, at, anchor) }
        };
        for (text, index) in self.names.iter().zip(0..) {
            let middle = index * cell + cell / 2;
            scene.text(name(text, (left - 8 * PX, top + middle), Anchor::End).centered());
            let above = (left + middle, top - 8 * PX);
            scene.text(if horizontal {
                name(text, above, Anchor::Middle)
            } else {
                name(text, above, Anchor::Start).upwards()
            });
        }
    }

    fn fill_cells(&self, scene: &mut Scene, (left, top): (i32, i32), cell: i32) {
        let numbers = self.numbers();
        let size = number_size(numbers.iter().flatten(), cell);
        let cells = self.rows.iter().zip(&numbers).zip(0..).flat_map(|((row, numbers), y)| {
            row.iter().zip(numbers).zip(0..).map(move |((value, number), x)| (x, y, *value, number))
        });
        let mistakes = cells.clone().filter(|(x, y, ..)| x != y);
        let largest = mistakes.map(|(_, _, value, _)| value).fold(0.0, f64::max);
        for (x, y, value, number) in cells {
            let at = (left + x * cell, top + y * cell);
            let intensity = if largest > 0.0 { value / largest } else { 0.0 };
            let (fill, ink) = match () {
                () if x == y => (DIAGONAL, TEXT_COLOR),
                () if value == 0.0 => (shade(0.0), MUTED),
                () if intensity > 0.55 => (shade(intensity), WHITE),
                () => (shade(intensity), TEXT_COLOR),
            };
            let inside = (cell - PX, cell - PX);
            scene.shapes.push(Shape::Rect { at, size: inside, fill });
            if let Some(size) = size {
                let middle = (at.0 + inside.0 / 2, at.1 + inside.1 / 2);
                let text = Text { size, fill: ink, ..Text::new(number, middle, Anchor::Middle) };
                scene.text(text.centered());
            }
        }
    }
}

/// The largest legible font size at which every number fits its cell.
fn number_size<'a>(numbers: impl Iterator<Item = &'a String> + Clone, cell: i32) -> Option<i32> {
    (8..=13).rev().map(|size| size * PX).find(|size| {
        numbers.clone().all(|number| text_width(number, *size, false) <= cell - 4 * PX)
    })
}

/// A sequential color scale from white to dark blue, readable without color vision.
fn shade(intensity: f64) -> Color {
    let mix = |pale: u8, dark: u8| {
        (f64::from(pale) + (f64::from(dark) - f64::from(pale)) * intensity).round() as u8
    };
    (mix(0xff, 0x08), mix(0xff, 0x40), mix(0xff, 0x80))
}
