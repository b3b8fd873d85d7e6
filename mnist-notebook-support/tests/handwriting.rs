//! A trained network reads digits that `prepare_digit` has prepared from pictures by every pen:
//! thin and thick lines, on light and dark grounds, with grain, in shadows, and with the lines that
//! scanners leave along the edges. The pictures are drawn here, from strokes.

mod common;

use std::collections::BTreeMap;
use std::f32::consts::PI;

use jax_random::uniform;
use mnist_notebook_support::prelude::*;

use common::device;

/// Widths of pens, relative to the side of the picture.
const PENS: [f32; 6] = [0.005, 0.01, 0.02, 0.04, 0.08, 0.15];

/// A line through points `(x, y)`; a digit fills 0 to 0.6 by 0 to 1, with `y` downward.
type Stroke = Vec<(f32, f32)>;

/// A part of an ellipse, in degrees clockwise from the right.
fn arc((x, y): (f32, f32), (width, height): (f32, f32), from: f32, to: f32) -> Stroke {
    let angles =
        (0..=32).map(|step| (from + (to - from) * step as f32 / 32.0) * PI / 180.0);
    angles.map(|angle| (x + width * angle.cos(), y + height * angle.sin())).collect()
}

fn line(points: &[(f32, f32)]) -> Stroke {
    points.to_vec()
}

/// One stroke made of several.
fn joined(parts: &[Stroke]) -> Stroke {
    parts.concat()
}

/// Each digit in a few handwritten forms.
fn forms(digit: usize) -> Vec<Vec<Stroke>> {
    match digit {
        0 => vec![
            vec![arc((0.3, 0.5), (0.3, 0.5), -90.0, 270.0)],
            vec![arc((0.3, 0.5), (0.22, 0.5), -60.0, 310.0)],
            vec![arc((0.3, 0.5), (0.38, 0.46), -110.0, 260.0)],
        ],
        1 => vec![
            vec![line(&[(0.3, 0.0), (0.3, 1.0)])],
            vec![line(&[(0.4, 0.0), (0.22, 1.0)])],
            vec![line(&[(0.18, 0.2), (0.35, 0.0), (0.33, 1.0)])],
        ],
        2 => vec![
            vec![joined(&[
                arc((0.3, 0.28), (0.28, 0.28), -160.0, 30.0),
                line(&[(0.02, 1.0), (0.6, 1.0)]),
            ])],
            vec![joined(&[
                arc((0.28, 0.25), (0.26, 0.25), -150.0, 40.0),
                line(&[(0.2, 0.8), (0.0, 0.97), (0.15, 0.9), (0.6, 0.98)]),
            ])],
            vec![joined(&[
                arc((0.3, 0.3), (0.25, 0.3), -180.0, 20.0),
                arc((0.17, 0.85), (0.14, 0.12), 10.0, 300.0),
                line(&[(0.3, 0.85), (0.6, 1.0)]),
            ])],
        ],
        3 => vec![
            vec![joined(&[
                arc((0.28, 0.25), (0.26, 0.25), -150.0, 80.0),
                arc((0.26, 0.74), (0.32, 0.26), -80.0, 150.0),
            ])],
            vec![joined(&[
                line(&[(0.05, 0.0), (0.5, 0.0), (0.25, 0.38)]),
                arc((0.25, 0.69), (0.3, 0.31), -80.0, 140.0),
            ])],
            vec![joined(&[
                arc((0.25, 0.22), (0.22, 0.22), -170.0, 90.0),
                arc((0.25, 0.72), (0.26, 0.28), -90.0, 170.0),
            ])],
        ],
        4 => vec![
            vec![
                line(&[(0.1, 0.0), (0.0, 0.55), (0.6, 0.52)]),
                line(&[(0.48, 0.05), (0.42, 1.0)]),
            ],
            vec![line(&[(0.5, 0.68), (0.0, 0.68), (0.42, 0.0), (0.4, 1.0)])],
            vec![
                joined(&[
                    line(&[(0.08, 0.02)]),
                    arc((0.25, 0.35), (0.22, 0.18), 170.0, 40.0),
                    line(&[(0.5, 0.4)]),
                ]),
                line(&[(0.55, 0.0), (0.5, 0.5), (0.48, 1.0)]),
            ],
        ],
        5 => vec![
            vec![joined(&[
                line(&[(0.58, 0.0), (0.1, 0.0), (0.07, 0.42)]),
                arc((0.26, 0.68), (0.3, 0.31), -110.0, 140.0),
            ])],
            vec![
                joined(&[
                    line(&[(0.12, 0.02), (0.1, 0.4)]),
                    arc((0.24, 0.69), (0.3, 0.3), -110.0, 150.0),
                ]),
                line(&[(0.12, 0.02), (0.6, 0.0)]),
            ],
        ],
        6 => vec![
            vec![joined(&[
                line(&[(0.48, 0.0), (0.2, 0.3)]),
                arc((0.3, 0.72), (0.27, 0.27), -160.0, -520.0),
            ])],
            vec![joined(&[
                arc((0.45, 0.5), (0.42, 0.5), -100.0, -190.0),
                arc((0.28, 0.74), (0.24, 0.24), 170.0, -190.0),
            ])],
            vec![joined(&[
                line(&[(0.3, 0.0), (0.1, 0.45), (0.05, 0.7)]),
                arc((0.26, 0.78), (0.21, 0.22), 180.0, -170.0),
            ])],
        ],
        7 => vec![
            vec![line(&[(0.0, 0.0), (0.6, 0.0), (0.25, 1.0)])],
            vec![line(&[(0.0, 0.02), (0.55, 0.0), (0.42, 0.4), (0.3, 1.0)])],
            vec![
                line(&[(0.02, 0.02), (0.58, 0.0), (0.25, 1.0)]),
                line(&[(0.2, 0.5), (0.56, 0.48)]),
            ],
        ],
        8 => vec![
            vec![
                arc((0.3, 0.25), (0.22, 0.25), 90.0, 450.0),
                arc((0.3, 0.75), (0.28, 0.25), -90.0, 270.0),
            ],
            vec![joined(&[
                arc((0.3, 0.23), (0.24, 0.23), -50.0, -230.0),
                arc((0.3, 0.75), (0.26, 0.25), -40.0, 220.0),
                line(&[(0.45, 0.07)]),
            ])],
        ],
        _ => vec![
            vec![
                arc((0.28, 0.27), (0.26, 0.27), 0.0, 360.0),
                line(&[(0.54, 0.1), (0.5, 1.0)]),
            ],
            vec![joined(&[
                arc((0.28, 0.25), (0.25, 0.25), -20.0, -370.0),
                line(&[(0.52, 0.4), (0.4, 1.0)]),
            ])],
            vec![joined(&[
                arc((0.29, 0.25), (0.25, 0.25), -10.0, -370.0),
                line(&[(0.54, 0.25), (0.5, 0.8)]),
                arc((0.28, 0.78), (0.22, 0.22), 10.0, 130.0),
            ])],
        ],
    }
}

/// How a picture looks.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Side of the square picture, in pixels.
    side: usize,
    /// Width of the pen, relative to the side.
    pen: f32,
    has_dark_ground: bool,
    extra: Extra,
}

/// What else a camera or a scanner adds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Extra {
    Nothing,
    /// Lines of the ink's color along some edges, one or two pixels wide.
    EdgeLines,
    /// Light that fades across the picture.
    Fading,
    /// A shadow over a part of the picture, with a soft edge.
    Shadow,
}

const EXTRAS: [Extra; 4] =
    [Extra::Nothing, Extra::EdgeLines, Extra::Fading, Extra::Shadow];

/// Draws a digit somewhere in a picture, a little slanted, with grain.
fn draw(strokes: &[Stroke], look: Look, key: Key) -> Tensor {
    let Look { side, pen, has_dark_ground, extra } = look;
    let size = side as f32;
    let mut random = uniform(key, 20, 0.0, 1.0);
    let mut between = |low: f32, high: f32| low + (high - low) * random.next().unwrap();

    let height = between(0.5, 0.65) * size;
    let (slant, stretch) = (between(-0.05, 0.3), between(0.85, 1.1));
    let room = (0.95 * size - height - pen * size).max(0.0);
    let center = (
        size / 2.0 + between(-0.5, 0.5) * room,
        size / 2.0 + between(-0.5, 0.5) * room,
    );
    let place = |&(x, y): &(f32, f32)| {
        let x = (x - 0.3) * stretch + slant * (0.5 - y);
        (center.0 + x * height, center.1 + (y - 0.5) * height)
    };
    let mut ink = vec![0.0; side * side];
    for stroke in strokes {
        let points: Vec<_> = stroke.iter().map(place).collect();
        for ends in points.windows(2) {
            draw_line(&mut ink, side, ends[0], ends[1], pen * size / 2.0);
        }
    }
    if extra == Extra::EdgeLines {
        let (edges, width) = (between(1.0, 16.0) as usize, between(1.0, 3.0) as usize);
        draw_edges(&mut ink, side, edges, width);
    }

    let (mut paper, mut color) = (between(0.75, 1.0), between(0.0, 0.35));
    if has_dark_ground {
        (paper, color) = (1.0 - paper, 1.0 - color);
    }
    let (angle, offset) = (between(0.0, 2.0 * PI), between(-0.3, 0.3));
    let grain = jax_random::normal(key.fold_in(1), side * side);
    let pixels = ink.into_iter().zip(grain).enumerate().map(|(index, (ink, grain))| {
        let (y, x) =
            ((index / side) as f32 / size - 0.5, (index % side) as f32 / size - 0.5);
        let along = x * angle.cos() + y * angle.sin();
        let light = match extra {
            Extra::Nothing | Extra::EdgeLines => 1.0,
            Extra::Fading => 0.75 + 0.35 * along,
            Extra::Shadow => 0.5 + 0.5 / (1.0 + (40.0 * (along - offset)).exp()),
        };
        (light * (paper + (color - paper) * ink) + 0.015 * grain).clamp(0.0, 1.0)
    });
    Tensor::from_vec(pixels.collect::<Vec<_>>(), (1, side, side, 1), &device()).unwrap()
}

/// Draws a line with round ends and smooth sides.
fn draw_line(
    ink: &mut [f32],
    side: usize,
    from: (f32, f32),
    to: (f32, f32),
    radius: f32,
) {
    let reach = |a: f32, b: f32| {
        let start = (a.min(b) - radius - 1.0).max(0.0) as usize;
        start..((a.max(b) + radius + 2.0).max(0.0) as usize).min(side)
    };
    let (right, down) = (to.0 - from.0, to.1 - from.1);
    for y in reach(from.1, to.1) {
        for x in reach(from.0, to.0) {
            let (dx, dy) = (x as f32 + 0.5 - from.0, y as f32 + 0.5 - from.1);
            let part =
                (dx * right + dy * down) / (right * right + down * down).max(1e-9);
            let part = part.clamp(0.0, 1.0);
            let distance = (dx - part * right).hypot(dy - part * down);
            let covered = (radius + 0.5 - distance).clamp(0.0, (2.0 * radius).min(1.0));
            let pixel = &mut ink[y * side + x];
            *pixel = pixel.max(covered);
        }
    }
}

/// Draws lines along the edges whose bit is set; thin ones a little inside.
fn draw_edges(ink: &mut [f32], side: usize, edges: usize, width: usize) {
    let start = if width == 1 { side / 80 } else { 0 };
    for (index, pixel) in ink.iter_mut().enumerate() {
        let (y, x) = (index / side, index % side);
        let distances = [y, side - 1 - y, x, side - 1 - x].into_iter().enumerate();
        let mut lines = distances.filter(|(edge, _)| edges >> edge & 1 == 1);
        if lines.any(|(_, distance)| (start..start + width).contains(&distance)) {
            *pixel = 1.0;
        }
    }
}

/// The tutorial's network after half an epoch.
fn trained() -> Params {
    let (train_ds, _) = get_datasets(&device()).unwrap();
    let (rng, init_rng) = Key::new(0).split();
    let params = get_initial_params(&Cnn, init_rng, &device()).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let half = train_ds.slice(0, 30_000).unwrap();
    train_epoch(&Cnn, &mut optimizer, &half, 32, 1, rng).unwrap();
    optimizer.target().copy().unwrap()
}

#[test]
fn digits_of_every_pen_are_read() {
    let mut looks = Vec::new();
    let mut prepared = Vec::new();
    let mut extras = EXTRAS.iter().cycle();
    for (digit, form) in
        (0..10).flat_map(|digit| forms(digit).into_iter().map(move |f| (digit, f)))
    {
        for (pen, has_dark_ground) in
            PENS.iter().flat_map(|pen| [(*pen, false), (*pen, true)])
        {
            let number = looks.len();
            let side = 200 + 5 * (number % 20);
            let look =
                Look { side, pen, has_dark_ground, extra: *extras.next().unwrap() };
            let image = prepare_digit(&draw(&form, look, Key::new(number as i64)))
                .unwrap_or_else(|error| panic!("{digit}, {look:?}: {error}"));
            assert_eq!(
                image.max_all().unwrap().to_scalar::<f32>().unwrap(),
                1.0,
                "{look:?}"
            );
            looks.push((digit, look));
            prepared.push(image);
        }
        extras.next(); // the next form has other extras with the same pens
    }
    let log_probs = Cnn.apply(&trained(), &Tensor::cat(&prepared, 0).unwrap()).unwrap();
    let answers: Vec<u32> = log_probs.argmax(1).unwrap().to_vec1().unwrap();

    let mut counts = BTreeMap::<String, (usize, usize)>::new();
    for ((digit, look), answer) in looks.into_iter().zip(answers) {
        let groups =
            ["all".into(), format!("pen {}", look.pen), format!("{:?}", look.extra)];
        for group in groups {
            let (right, all) = counts.entry(group).or_default();
            *right += usize::from(answer as usize == digit);
            *all += 1;
        }
    }
    assert!(counts.values().all(|(right, all)| right * 100 >= all * 95), "{counts:?}");
}
