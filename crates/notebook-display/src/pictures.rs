//! Pictures in rows with captions, such as network inputs, predictions and kernels.

use crate::error::{Error, Result};
use crate::figure::{Chart, Figure};
use crate::picture::Picture;
use crate::picture_layout::{self, Grid};
use crate::scene::Scene;

/// Draws pictures in rows, with their captions.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 144 pictures.
pub fn picture_grid(title: &str, pictures: &[Picture]) -> Result<Figure> {
    let columns = columns(pictures.len());
    let rows = pictures.chunks(columns).map(|row| (String::new(), row.to_vec()));
    draw(title, rows.collect())
}

/// Draws rows of pictures, each with its name on the left.
///
/// # Errors
/// [`Error::Figure`] unless there are 1 to 144 pictures, at most 24 in a row.
///
/// # Examples
/// ```
/// # use notebook_display::{Picture, picture_rows};
/// let image = Picture::new(&[0.0, 0.2, 0.4, 1.0], 2, 2)?;
/// let maps = [Picture::new(&[0.9], 1, 1)?, Picture::new(&[0.1], 1, 1)?];
/// let figure = picture_rows("Layers", &[("input", vec![image]), ("pool", maps.to_vec())])?;
/// assert_eq!(figure.text(), "Layers: 3 pictures\n  input: 1 picture\n  pool: 2 pictures");
/// # Ok::<(), notebook_display::Error>(())
/// ```
pub fn picture_rows(title: &str, rows: &[(&str, Vec<Picture>)]) -> Result<Figure> {
    let rows = rows.iter().map(|(name, pictures)| ((*name).to_owned(), pictures.clone()));
    draw(title, rows.collect())
}

fn draw(title: &str, rows: Vec<(String, Vec<Picture>)>) -> Result<Figure> {
    let refuse = |reason| Err(Error::Figure(format!("`{title}`: {reason}")));
    let count: usize = rows.iter().map(|(_, pictures)| pictures.len()).sum();
    if count == 0 || count > 144 {
        return refuse(format!("expected 1 to 144 pictures, found {count}"));
    }
    if let Some((name, pictures)) = rows.iter().find(|(_, pictures)| pictures.len() > 24) {
        return refuse(format!("row `{name}` has {} pictures, more than 24", pictures.len()));
    }
    Figure::new(Grid { title: title.to_owned(), rows })
}

/// One row for up to five pictures; a grid slightly wider than high for more, with full rows if
/// possible.
fn columns(count: usize) -> usize {
    match count {
        0..=5 => count.max(1),
        _ => {
            let min = ((count as f64).sqrt().ceil() as usize).max(5);
            let mut candidates = min..=(min + 3).min(12);
            candidates.find(|columns| count.is_multiple_of(*columns)).unwrap_or(min)
        }
    }
}

impl Chart for Grid {
    fn title(&self) -> &str {
        &self.title
    }

    fn describe(&self) -> String {
        let mut text = format!("{}: {}", self.title, counted(self.pictures().count()));
        for (name, pictures) in &self.rows {
            let captions = pictures.iter().map(|picture| match picture.verdict {
                Some(true) => format!("{} (right)", picture.caption),
                Some(false) => format!("{} (wrong)", picture.caption),
                None => picture.caption.clone(),
            });
            let captions: Vec<_> = captions.collect();
            let has_captions = captions.iter().any(|caption| !caption.is_empty());
            let captions = if has_captions { captions.join(", ") } else { counted(pictures.len()) };
            match name.as_str() {
                "" if !has_captions => {}
                "" => text += &format!("\n  {captions}"),
                _ => text += &format!("\n  {name}: {captions}"),
            }
        }
        if let Some(largest) = self.largest() {
            let largest = picture_layout::scale_end(largest);
            text += &format!("\n  from -{largest} (blue) through 0 (white) to {largest} (orange)");
        }
        text
    }

    fn scene(&self, width: i32) -> Result<Scene> {
        Ok(picture_layout::scene(self, width))
    }
}

fn counted(pictures: usize) -> String {
    let plural = if pictures == 1 { "" } else { "s" };
    format!("{pictures} picture{plural}")
}
