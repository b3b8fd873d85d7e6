//! Legends above a plot.

use crate::scene::{Anchor, PADDING, PX, Scene, TEXT, Text, fit, text_width};

/// Draws names in rows, each after a sample of this width, which `draw_sample` draws at its left
/// end and middle. Returns the y coordinate below the rows.
pub(crate) fn draw_legend<'a>(
    scene: &mut Scene,
    top: i32,
    names: impl Iterator<Item = &'a str>,
    sample: i32,
    draw_sample: impl Fn(&mut Scene, usize, (i32, i32)),
) -> i32 {
    let (row, gap) = (20 * PX, 18 * PX);
    let (mut left, mut middle) = (PADDING, top + row / 2);
    for (index, name) in names.enumerate() {
        let name = fit(name, scene.width - 2 * PADDING - sample, TEXT, false);
        let width = sample + text_width(&name, TEXT, false);
        if left > PADDING && left + width > scene.width - PADDING {
            (left, middle) = (PADDING, middle + row);
        }
        draw_sample(scene, index, (left, middle));
        scene.text(Text::new(&name, (left + sample, middle), Anchor::Start).centered());
        left += width + gap;
    }
    middle + row / 2
}
