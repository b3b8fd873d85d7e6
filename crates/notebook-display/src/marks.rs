//! Marks for points: a form of its own for each kind, so that kinds differ by more than colour.

use plotters_backend::BackendCoord;

use crate::scene::{Colour, Scene, Shape};

/// How many forms there are.
pub(crate) const FORMS: usize = 5;

/// Draws a disc, a square, a triangle, a diamond, or a triangle on its tip.
pub(crate) fn mark(scene: &mut Scene, form: usize, (x, y): BackendCoord, r: i32, fill: Colour) {
    let polygon = |corners: &[BackendCoord]| Shape::Polygon {
        points: corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect(),
        fill,
    };
    scene.shapes.push(match form % FORMS {
        0 => Shape::Circle { centre: (x, y), radius: r, fill },
        1 => polygon(&[(-r, -r), (r, -r), (r, r), (-r, r)]),
        2 => polygon(&[(0, -r - 10), (r + 8, r), (-r - 8, r)]),
        3 => polygon(&[(0, -r - 14), (r + 14, 0), (0, r + 14), (-r - 14, 0)]),
        _ => polygon(&[(0, r + 10), (r + 8, -r), (-r - 8, -r)]),
    });
}
