//! Markers for points: one shape per class, so that classes differ by more than color.

use plotters_backend::BackendCoord;

use crate::scene::{Color, Scene, Shape};

/// Number of marker shapes.
pub(crate) const SHAPES: usize = 5;

/// Draws a disc, a square, a triangle, a diamond, or a triangle that points down.
pub(crate) fn draw_marker(
    scene: &mut Scene,
    shape: usize,
    (x, y): BackendCoord,
    r: i32,
    fill: Color,
) {
    let polygon = |corners: &[BackendCoord]| Shape::Polygon {
        points: corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect(),
        fill,
    };
    scene.shapes.push(match shape % SHAPES {
        0 => Shape::Circle { center: (x, y), radius: r, fill },
        1 => polygon(&[(-r, -r), (r, -r), (r, r), (-r, r)]),
        2 => polygon(&[(0, -r - 10), (r + 8, r), (-r - 8, r)]),
        3 => polygon(&[(0, -r - 14), (r + 14, 0), (0, r + 14), (-r - 14, 0)]),
        _ => polygon(&[(0, r + 10), (r + 8, -r), (-r - 8, -r)]),
    });
}
