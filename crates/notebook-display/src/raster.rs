//! The pixels of pictures, and their SVG form.

use std::fmt::Write;

use plotters_backend::BackendCoord;

use crate::units::{Color, Hex, Px};

/// Square pixels in a few colors, row by row.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub at: BackendCoord,
    /// Side length of one pixel.
    pub pixel: i32,
    pub width: usize,
    pub colors: Colors,
    /// Indices into the colors.
    pub levels: Vec<u8>,
}

/// The colors of a picture.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Colors {
    /// 16 levels: 0 is black, 15 is white.
    Gray,
    /// 31 levels: 0 is blue, 15 is white, 30 is orange.
    Diverging,
}

impl Colors {
    pub fn color(self, level: u8) -> Color {
        const ENDS: [Color; 2] = [(0x00, 0x4f, 0x94), (0xb8, 0x45, 0x00)];
        match self {
            Colors::Gray => (level * 17, level * 17, level * 17),
            Colors::Diverging => {
                let (red, green, blue) = ENDS[usize::from(level > 15)];
                let share = u32::from(level.abs_diff(15));
                let mix = |end: u8| (255 - (255 - u32::from(end)) * share / 15) as u8;
                (mix(red), mix(green), mix(blue))
            }
        }
    }

    /// The level of most pixels: a picture is drawn over it.
    pub fn base(self) -> u8 {
        match self {
            Colors::Gray => 0,
            Colors::Diverging => 15,
        }
    }
}

impl Picture {
    pub fn height(&self) -> usize {
        self.levels.len() / self.width.max(1)
    }

    /// Horizontal runs of equal pixels that differ from the base: level, row, first column, length.
    pub fn runs(&self) -> Vec<(u8, usize, usize, usize)> {
        let mut runs = Vec::new();
        for (row, levels) in self.levels.chunks(self.width.max(1)).enumerate() {
            let mut column = 0;
            for run in levels.chunk_by(|a, b| a == b) {
                if run[0] != self.colors.base() {
                    runs.push((run[0], row, column, run.len()));
                }
                column += run.len();
            }
        }
        runs
    }

    /// One path per level, stroked one pixel wide along the middle of each row, is the shortest
    /// SVG.
    pub fn write(&self, svg: &mut String) -> std::fmt::Result {
        write!(
            svg,
            "<g transform=\"translate({} {}) scale({})\" shape-rendering=\"crispEdges\">\
             <rect width=\"{}\" height=\"{}\" fill=\"{}\"/>",
            Px(self.at.0),
            Px(self.at.1),
            Px(self.pixel),
            self.width,
            self.height(),
            Hex(self.colors.color(self.colors.base())),
        )?;
        let mut runs = self.runs();
        runs.sort();
        for runs in runs.chunk_by(|a, b| a.0 == b.0) {
            write!(svg, "<path stroke=\"{}\" d=\"", Hex(self.colors.color(runs[0].0)))?;
            for (_, row, column, length) in runs {
                write!(svg, "M{column} {row}.5h{length}")?;
            }
            write!(svg, "\"/>")?;
        }
        writeln!(svg, "</g>")
    }
}
