//! Encodes an opaque drawing as a small PNG file: of few colors.

use std::cmp::Reverse;
use std::collections::HashMap;

use png::{BitDepth, ColorType, Compression, EncodingError, Filter};
use tiny_skia::Pixmap;

/// A figure has at most some sixty colors, those of pictures and their scales, and mixtures of them
/// along edges: of these, few are enough.
const COLORS: usize = 128;

type Color = [u8; 3];

/// The file, in which rare colors are replaced by the nearest of the most frequent ones.
pub(crate) fn encode(pixmap: &Pixmap) -> Result<Vec<u8>, EncodingError> {
    let pixels = pixmap.pixels().iter().map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]);
    let pixels: Vec<Color> = pixels.collect();
    let mut counts = HashMap::<Color, usize>::new();
    for run in pixels.chunk_by(|a, b| a == b) {
        *counts.entry(run[0]).or_default() += run.len();
    }
    let mut palette: Vec<Color> = counts.keys().copied().collect();
    palette.sort_by_key(|color| (Reverse(counts[color]), *color));
    palette.truncate(COLORS);
    let nearest = |color: &Color| {
        let index = (0..palette.len()).min_by_key(|index| distance(*color, palette[*index]));
        (*color, index.unwrap_or(0) as u8)
    };
    let indices: HashMap<Color, u8> = counts.keys().map(nearest).collect();
    let mut data = Vec::with_capacity(pixels.len());
    for run in pixels.chunk_by(|a, b| a == b) {
        data.resize(data.len() + run.len(), indices[&run[0]]);
    }

    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, pixmap.width(), pixmap.height());
    encoder.set_color(ColorType::Indexed);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_palette(palette.concat());
    encoder.set_compression(Compression::High);
    encoder.set_filter(Filter::NoFilter);
    encoder.write_header()?.write_image_data(&data)?;
    Ok(file)
}

fn distance(a: Color, b: Color) -> u32 {
    a.iter().zip(b).map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The red, green and blue of all pixels of a file.
    pub(crate) fn decoded(file: Vec<u8>) -> Vec<u8> {
        let mut decoder = png::Decoder::new(std::io::Cursor::new(file));
        decoder.set_transformations(png::Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        pixels
    }

    #[test]
    fn frequent_colors_are_kept_and_rare_ones_replaced_by_the_nearest() {
        let mut pixmap = Pixmap::new(100, 10).unwrap();
        for (index, pixel) in pixmap.pixels_mut().iter_mut().enumerate() {
            // White, red, and 200 shades of nearly red.
            let (green, blue) = match index {
                0..500 => (255, 255),
                500..800 => (0, 0),
                _ => (0, (index - 800) as u8),
            };
            *pixel = tiny_skia::ColorU8::from_rgba(255, green, blue, 255).premultiply();
        }
        let pixels = decoded(encode(&pixmap).unwrap());
        let found: Vec<&[u8]> = pixels.chunks(3).collect();
        assert_eq!(found.len(), 1000);
        assert!(found[..500].iter().all(|color| *color == [255, 255, 255]));
        assert!(found[500..800].iter().all(|color| *color == [255, 0, 0]));
        assert!(
            found[800..].iter().all(|color| color[0] == 255 && color[1] == 0 && color[2] < 200)
        );
        let colors: std::collections::HashSet<_> = found.iter().collect();
        assert_eq!(colors.len(), COLORS);
    }
}
