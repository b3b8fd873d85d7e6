//! A figure: its drawing, its text alternative, and its files.

use std::path::Path;
use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};

use crate::display::display;
use crate::error::{Error, Result};
use crate::scene::{PX, Scene};

/// Width of a figure with one panel.
const NARROW: i32 = 660 * PX;
/// Width of a figure with several panels side by side.
const WIDE: i32 = 720 * PX;

/// A chart that can be drawn at any width.
pub(crate) trait Chart: std::fmt::Debug + Send + Sync {
    /// The title, which screen readers announce, too.
    fn title(&self) -> &str;
    /// The data as a few lines of text.
    fn describe(&self) -> String;
    /// The drawing at this width.
    fn scene(&self, width: i32) -> Result<Scene>;
}

/// A vector drawing with a text alternative.
///
/// A cell shows it as `image/svg+xml`, with `image/png` for front ends that show no SVG, such as
/// JupyterLab for a notebook that is not trusted, and `text/plain` for others.
#[derive(Clone, Debug)]
pub struct Figure {
    panels: Vec<Arc<dyn Chart>>,
    scene: Scene,
    svg: String,
    text: String,
}

impl Figure {
    pub(crate) fn new(chart: impl Chart + 'static) -> Result<Self> {
        Self::from_panels(vec![Arc::new(chart)])
    }

    fn from_panels(panels: Vec<Arc<dyn Chart>>) -> Result<Self> {
        let width = if panels.len() > 1 { WIDE } else { NARROW };
        let count = i32::try_from(panels.len()).unwrap_or(i32::MAX).max(1);
        let mut scene = Scene::default();
        for panel in &panels {
            scene.append(panel.scene(width / count)?, scene.width);
        }
        let titles: Vec<_> = panels.iter().map(|panel| panel.title()).collect();
        let texts: Vec<_> = panels.iter().map(|panel| panel.describe()).collect();
        let text = texts.join("\n");
        let svg = scene.svg(&titles.join(", "), &text);
        Ok(Self { panels, scene, svg, text })
    }

    /// The figure as an SVG document.
    pub fn svg(&self) -> &str {
        &self.svg
    }

    /// The text alternative: the figure's data in words.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Writes the figure to a file; the extension, `.svg` or `.png`, determines the format.
    ///
    /// # Errors
    /// [`Error::Figure`] for another extension, and for `.png` with letters that are not Latin,
    /// Greek or Cyrillic; [`Error::Save`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        let content = match extension.to_str() {
            Some("svg") => self.svg.clone().into_bytes(),
            Some("png") => crate::png::render(&self.scene)?,
            _ => {
                let name = path.display();
                return Err(Error::Figure(format!("`{name}` must end in .svg or .png")));
            }
        };
        std::fs::write(path, content).map_err(|source| Error::Save { path: path.into(), source })
    }

    /// Shows the figure as the result of a notebook cell.
    pub fn evcxr_display(&self) {
        let png = self.png();
        let png = png.as_ref().map(|png| ("image/png", png.as_str()));
        let svg = ("image/svg+xml", self.svg.as_str());
        let text = ("text/plain", self.text.as_str());
        display(&[svg].into_iter().chain(png).chain([text]).collect::<Vec<_>>());
    }

    /// The PNG file as base64; `None` if its font lacks a letter.
    pub(crate) fn png(&self) -> Option<String> {
        let file = crate::png::render(&self.scene).ok()?;
        Some(BASE64_STANDARD.encode(file))
    }

    #[cfg(test)]
    pub(crate) fn scene(&self) -> &Scene {
        &self.scene
    }
}

/// Combines several figures into one, from left to right.
///
/// # Errors
/// [`Error::Figure`] for no figures, and for more than four panels, which would be too narrow.
pub fn side_by_side(figures: &[Figure]) -> Result<Figure> {
    let panels: Vec<_> = figures.iter().flat_map(|figure| figure.panels.clone()).collect();
    match panels.len() {
        0 => Err(Error::Figure("no figures to place side by side".to_owned())),
        1..=4 => Figure::from_panels(panels),
        count => {
            Err(Error::Figure(format!("{count} panels side by side are too narrow: use at most 4")))
        }
    }
}
