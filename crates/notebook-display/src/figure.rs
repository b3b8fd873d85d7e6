//! A figure: its drawing, its description in words, and its files.

use std::path::Path;
use std::sync::Arc;

use crate::display::display;
use crate::scene::{PX, Scene};
use crate::error::{Error, Result};

/// Width of a figure with one panel.
const NARROW: i32 = 660 * PX;
/// Width of a figure with several panels side by side.
const WIDE: i32 = 720 * PX;

/// What can be drawn at any width.
pub(crate) trait Chart: std::fmt::Debug + Send + Sync {
    /// The title, also read to those who cannot see the figure.
    fn title(&self) -> &str;
    /// The data in a few lines of text.
    fn describe(&self) -> String;
    /// The drawing, `width` wide.
    fn draw(&self, width: i32) -> Result<Scene>;
}

/// A drawing that displays itself in a notebook, sharp at any size, with a text alternative.
///
/// In a cell it is shown as `image/svg+xml` with `text/plain` beside it, which code-hosting pages
/// show too. It brings its own white paper, so that it reads the same in light and dark themes.
#[derive(Clone, Debug)]
pub struct Figure {
    panels: Vec<Arc<dyn Chart>>,
    #[cfg(any(feature = "png", test))]
    scene: Scene,
    svg: String,
    text: String,
}

impl Figure {
    pub(crate) fn new(chart: impl Chart + 'static) -> Result<Self> {
        Self::of(vec![Arc::new(chart)])
    }

    fn of(panels: Vec<Arc<dyn Chart>>) -> Result<Self> {
        let whole = if panels.len() > 1 { WIDE } else { NARROW };
        let count = i32::try_from(panels.len()).unwrap_or(i32::MAX).max(1);
        let mut scene = Scene::default();
        for panel in &panels {
            scene.append(panel.draw(whole / count)?, scene.width);
        }
        let titles: Vec<_> = panels.iter().map(|panel| panel.title()).collect();
        let texts: Vec<_> = panels.iter().map(|panel| panel.describe()).collect();
        let text = texts.join("\n");
        let svg = scene.svg(&titles.join(", "), &text);
        Ok(Self {
            panels,
            #[cfg(any(feature = "png", test))]
            scene,
            svg,
            text,
        })
    }

    /// The figure as an SVG document.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The figure's data in words: the alternative for those who cannot see it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the figure to a file, as the ending of its name says: `.svg` or `.png`.
    ///
    /// # Errors
    ///
    /// [`Error::Figure`] if the name ends otherwise, [`Error::Save`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let ending = path.extension().unwrap_or_default().to_ascii_lowercase();
        let content = match ending.to_str() {
            Some("svg") => self.svg.clone().into_bytes(),
            Some("png") => self.png()?,
            _ => {
                let name = path.display();
                return Err(Error::Figure(format!("`{name}` must end in .svg or .png")));
            }
        };
        std::fs::write(path, content).map_err(|source| Error::Save { path: path.into(), source })
    }

    #[cfg(feature = "png")]
    fn png(&self) -> Result<Vec<u8>> {
        crate::png::paint(&self.scene)
    }

    #[cfg(not(feature = "png"))]
    fn png(&self) -> Result<Vec<u8>> {
        let advice = "this build writes no PNG: save as .svg, or enable the cargo feature `png`";
        Err(Error::Figure(advice.to_owned()))
    }

    /// Shows the figure as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        display(&[("image/svg+xml", &self.svg), ("text/plain", &self.text)]);
    }

    #[cfg(test)]
    pub(crate) fn scene(&self) -> &Scene {
        &self.scene
    }
}

/// The panels of several figures in one, from left to right.
///
/// # Errors
///
/// [`Error::Figure`] without figures, or with more than four panels, which would be too narrow.
pub fn side_by_side(figures: &[Figure]) -> Result<Figure> {
    let panels: Vec<_> = figures.iter().flat_map(|figure| figure.panels.clone()).collect();
    match panels.len() {
        0 => Err(Error::Figure("there is nothing to lay side by side".to_owned())),
        1..=4 => Figure::of(panels),
        more => Err(Error::Figure(format!("{more} panels side by side are too narrow: take 4"))),
    }
}
