//! Layout of all figures: text is neither cut off nor covered.

use crate::figure::{Chart, Figure};
use crate::scene::{Anchor, BACKGROUND, CLASS_COLORS, PALETTE, Scene, Shape, Text, text_width};
use crate::*;

/// Left, top, right, bottom.
type Box = (i32, i32, i32, i32);

fn text_box(text: &Text) -> Box {
    let width = text_width(&text.text, text.size, text.bold);
    let left = match text.anchor {
        Anchor::Start => 0,
        Anchor::Middle => -width / 2,
        Anchor::End => -width,
    };
    let (rise, fall) = (text.size * 3 / 4, text.size / 4);
    let (x, y) = text.at;
    match text.rotated_about {
        None => (x + left, y - rise, x + left + width, y + fall),
        // A quarter turn counter-clockwise: right of the pivot becomes above it.
        Some((px, py)) => {
            let (dx, dy) = (x - px, y - py);
            (px + dy - rise, py - dx - left - width, px + dy + fall, py - dx - left)
        }
    }
}

fn texts(scene: &Scene) -> Vec<(Box, &str)> {
    let texts = scene.shapes.iter().filter_map(|shape| match shape {
        Shape::Text(text) => Some((text_box(text), text.text.as_str())),
        _ => None,
    });
    texts.collect()
}

fn assert_legible(name: &str, figure: &Figure) {
    let scene = figure.scene();
    let texts = texts(scene);
    for (index, ((left, top, right, bottom), text)) in texts.iter().enumerate() {
        let inside = *left >= 0 && *top >= 0 && *right <= scene.width && *bottom <= scene.height;
        assert!(inside, "{name}: `{text}` is cut off");
        for ((left2, top2, right2, bottom2), other) in &texts[..index] {
            let apart = left >= right2 || left2 >= right || top >= bottom2 || top2 >= bottom;
            assert!(apart, "{name}: `{text}` covers `{other}`");
        }
    }
}

const LONG: &str = "a text that is longer than any figure is wide, because its author wanted to \
                    say all there is to say about the figure in a single line, and then some more";

fn line_charts() -> Vec<(&'static str, Figure)> {
    let chart = |series: &[(&str, Vec<f64>)]| line_chart("Loss", "epoch", "loss", series).unwrap();
    let noise = |length: u32| (0..length).map(|i| f64::from(i * 7919 % 101)).collect::<Vec<_>>();
    let long = [(LONG, noise(3)), (LONG, noise(3)), ("d", noise(3)), ("é<&>", noise(3))];
    let seven: Vec<_> = (0..7).map(|_| ("series", noise(20))).collect();
    vec![
        ("ten epochs", chart(&[("training", noise(10)), ("test", noise(10))])),
        ("one point", chart(&[("training", vec![0.1]), ("test", vec![0.2])])),
        ("two points", chart(&[("training", vec![0.1, 0.05])])),
        ("many points", chart(&[("a", noise(1875)), ("b", noise(18_750))])),
        ("constant", chart(&[("a", vec![0.0; 10])])),
        ("tiny", chart(&[("a", vec![1e-12, 3e-12])])),
        ("huge", chart(&[("a", vec![-1e30, 3e30])])),
        ("far from zero", chart(&[("a", vec![1e6, 1e6 + 0.01])])),
        ("seven series", chart(&seven)),
        ("long texts", line_chart(LONG, LONG, LONG, &long).unwrap()),
        ("range test", range_test().draw().unwrap()),
        ("calibration", calibration().draw().unwrap()),
        ("many marks", many_marks().draw().unwrap()),
    ]
}

fn range_test() -> LineChart {
    let rates = (0..=20).map(|step| 10_f64.powf(f64::from(step) / 4.0 - 5.0));
    let losses = (0..=20).map(|step| 3.0 / f64::from(step + 1));
    let chart = LineChart::new("Range test", "learning rate", "loss").log_x().log_y();
    chart.line("training", rates, losses).mark(0.004, "chosen")
}

fn calibration() -> LineChart {
    let (x, y, errors) = ([54.9, 75.1, 99.6], [29.7, 80.2, 99.5], [7.5, 4.2, 0.1]);
    LineChart::new("Calibration", "confidence (%)", "correct (%)")
        .reference("perfectly calibrated", [50, 100], [50, 100])
        .points_with_errors("test images", x, y, errors)
}

fn many_marks() -> LineChart {
    let chart = LineChart::new("Schedule", "step", "rate").line("rate", [0, 5062], [0.004, 0.0]);
    let marks = [0, 1, 250, 251, 300, 4000, 5000, 5062];
    marks.iter().fold(chart.mark(70, LONG), |chart, step| chart.mark(step, "the end of an epoch"))
}

fn bar_charts() -> Vec<(&'static str, Figure)> {
    let many = (0..100).map(|index| index * 1000);
    let chart = |label, bars: &[(&str, f64)]| {
        let (names, values): (Vec<_>, Vec<_>) = bars.iter().copied().unzip();
        bar_chart("Counts", label, "images", names, values).unwrap()
    };
    vec![
        ("one bar", chart("digit", &[("0", 1.0)])),
        ("no images", chart("digit", &[("0", 0.0), ("1", 0.0)])),
        ("long names", chart(LONG, &[(LONG, 1e-5), (LONG, 123_456_789.0)])),
        ("many bars", bar_chart("Counts", "class", "images", 0.., many).unwrap()),
    ]
}

fn heat_maps() -> Vec<(&'static str, Figure)> {
    let map = |title, names: &[&str], value: f64| {
        let rows = vec![vec![value; names.len()]; names.len()];
        heat_map(title, "true class", "predicted class", names, &rows).unwrap()
    };
    vec![
        ("one class", map("Confusion", &["a"], 12_345.0)),
        (
            "ten classes",
            map("Confusion", &["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"], 980.0),
        ),
        ("long names", map(LONG, &[LONG, "Ankle boot", "é"], 0.033)),
        ("fifty classes", map("Confusion", &["47"; 50], 1234.5)),
    ]
}

fn scatter_charts() -> Vec<(&'static str, Figure)> {
    let points: Vec<_> = (0..300_u32).map(|i| [i * 7919 % 101, i * 104_729 % 97]).collect();
    let chart = |scale: f64, classes: &[&str]| {
        let points = points.iter().map(|point| point.map(|value| f64::from(value) * scale));
        let points: Vec<_> = points.collect();
        let classes: Vec<_> = classes.iter().copied().cycle().take(points.len()).collect();
        scatter_chart("Features", "first component", "second component", &points, &classes).unwrap()
    };
    let digits = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let long = [LONG, "an Ankle boot", "é<&>", "a T-shirt or top", "a Pullover", "a Trouser"];
    vec![
        ("ten classes", chart(0.5, &digits)),
        ("one class", chart(1e-12, &["a"])),
        ("huge", chart(-1e28, &digits)),
        ("one point", scatter_chart("Point", "x", "y", &[[0, 0]], &["a"]).unwrap()),
        ("long names", chart(1e3, &long)),
        ("coinciding means", scatter_chart("Point", "x", "y", &[[1, 1]; 10], &digits).unwrap()),
        ("long texts", scatter_chart(LONG, LONG, LONG, &points, &[LONG; 300]).unwrap()),
    ]
}

/// Signed values from -0.3 to 0.5.
fn kernel() -> Picture {
    let values = [-0.3, 0.0, 0.5, 0.1, 0.0, 0.2, 0.0, 0.0, 0.0];
    Picture::signed(&values, 3, 3).unwrap()
}

fn picture_grids() -> Vec<(&'static str, Figure)> {
    let picture = || Picture::new(&[0.5; 784], 28, 28).unwrap();
    let grid = |count: usize, caption: &str| {
        let pictures = (0..count).map(|index| match index % 3 {
            0 => picture().caption(caption),
            1 => picture().caption(caption).verdict(true),
            _ => picture().caption(caption).verdict(false),
        });
        picture_grid("Pictures", &pictures.collect::<Vec<_>>()).unwrap()
    };
    let flat = Picture::new(&[0.5; 1024], 2, 512).unwrap().caption(LONG);
    vec![
        ("one picture", grid(1, "7")),
        ("a row", grid(5, "7")),
        ("25 pictures", grid(25, "3 (is 0)")),
        ("144 pictures", grid(144, "3 (is 0)")),
        ("long captions", grid(25, LONG)),
        ("no captions", grid(7, "")),
        ("flat pictures", picture_grid(LONG, &[flat.clone(), flat]).unwrap()),
        ("kernels", picture_grid("Kernels", &vec![kernel(); 32]).unwrap()),
        (
            "rows",
            picture_rows("Rows", &[("input", vec![picture()]), (LONG, vec![kernel(); 24])])
                .unwrap(),
        ),
    ]
}

#[test]
fn no_text_is_cut_off_or_covers_another() {
    let figures =
        [line_charts(), bar_charts(), heat_maps(), scatter_charts(), picture_grids()].concat();
    for (name, figure) in &figures {
        assert_legible(name, figure);
    }
    for (name, figure) in &figures {
        let beside = side_by_side(&[figure.clone(), figures[0].1.clone()]).unwrap();
        assert_legible(&format!("{name}, beside another"), &beside);
    }
}

#[test]
fn the_legend_is_above_the_data() {
    // Points have a sample of another form.
    for (name, figure) in line_charts().into_iter().filter(|(name, _)| *name != "calibration") {
        let scene = figure.scene();
        let is_series = |color: &super::scene::Color| PALETTE.contains(color);
        let lines = scene.shapes.iter().filter_map(|shape| match shape {
            Shape::Line { points, stroke, .. } if is_series(stroke) => Some(points),
            _ => None,
        });
        // Legend samples are horizontal lines of a fixed length.
        let (samples, data): (Vec<_>, Vec<_>) =
            lines.partition(|line| line.len() == 2 && line[1] == (line[0].0 + 340, line[0].1));
        let plot_top = data.iter().copied().flatten().map(|point| point.1).min().unwrap();
        let legend_bottom = samples.iter().copied().flatten().map(|point| point.1).max();
        assert!(legend_bottom.is_none_or(|bottom| bottom + 60 <= plot_top), "{name}");
        assert_eq!(samples.len() > 1, data.len() > 1, "{name}: a legend for several lines only");
    }
}

#[test]
fn classes_differ_in_color_and_marker_and_the_legend_is_above_the_data() {
    let (_, figure) = scatter_charts().swap_remove(0);
    let mut markers = std::collections::BTreeMap::<_, std::collections::BTreeSet<_>>::new();
    let mut heights = Vec::new();
    for shape in &figure.scene().shapes {
        let (corners, top, color) = match shape {
            Shape::Circle { center, radius, fill } => (Vec::new(), center.1 - radius, *fill),
            Shape::Polygon { points, fill } => {
                let (x, y) = points[0];
                let corners = points.iter().map(|point| (point.0 - x, point.1 - y)).collect();
                (corners, points.iter().map(|point| point.1).min().unwrap(), *fill)
            }
            _ => continue,
        };
        markers.entry(color).or_default().insert(corners);
        heights.push(top);
    }
    assert_eq!(markers.len(), 10);
    // Each class has two sizes: large in the legend, small in the plot.
    let (colors, markers): (Vec<_>, Vec<_>) = markers.into_iter().unzip();
    assert!(CLASS_COLORS.iter().all(|color| colors.contains(color)));
    let sharing = markers.iter().map(|marker| markers.iter().filter(|m| *m == marker).count());
    assert!(sharing.max() == Some(2), "at most two classes share a marker shape");
    let (legend, data) = heights.split_at(10);
    assert!(legend.iter().max().unwrap() + 100 < *data.iter().min().unwrap());
}

#[test]
fn dense_data_is_downsampled_without_losing_its_extremes() {
    let mut values = vec![1.0; 100_000];
    values[77_777] = 9.0;
    let figure = line_chart("Loss", "step", "loss", &[("a", values)]).unwrap();
    assert!(figure.svg().len() < 100_000, "{} bytes", figure.svg().len());
    let spike = figure.scene().shapes.iter().any(|shape| match shape {
        Shape::Line { points, stroke, .. } if *stroke == PALETTE[0] => {
            points.iter().any(|point| point.1 < points[0].1 - 1000)
        }
        _ => false,
    });
    assert!(spike, "the outlier is not drawn");
}

#[test]
fn right_and_wrong_differ_by_more_than_color() {
    let picture = || Picture::new(&[0.5; 4], 2, 2).unwrap().caption("3");
    let shapes = |right: bool| {
        let figure = picture_grid("", &[picture().verdict(right)]).unwrap();
        let scene = figure.scene().clone();
        let widths = scene.shapes.iter().filter_map(|shape| match shape {
            Shape::Line { width, points, .. } => Some((*width, points.len())),
            _ => None,
        });
        let bold = scene.shapes.iter().any(|shape| matches!(shape, Shape::Text(text) if text.bold));
        (widths.collect::<Vec<_>>(), bold)
    };
    let (right, wrong) = (shapes(true), shapes(false));
    assert!(right.0[0].0 < wrong.0[0].0, "the frame is thicker");
    assert_ne!(right.0[1..], wrong.0[1..], "the sign has another shape");
    assert!(!right.1 && wrong.1, "the caption is bold");
}

#[test]
fn colors_contrast_with_the_background() {
    let luminance = |(red, green, blue): super::scene::Color| {
        let linear = |channel: u8| (f64::from(channel) / 255.0).powf(2.2);
        0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue)
    };
    for color in CLASS_COLORS {
        let contrast = (luminance(BACKGROUND) + 0.05) / (luminance(color) + 0.05);
        assert!(contrast > 1.9, "{color:?}: {contrast}");
    }
}

#[test]
fn charts_can_be_drawn_at_any_width() {
    #[derive(Debug)]
    struct Empty;
    impl Chart for Empty {
        fn title(&self) -> &str {
            "Empty"
        }
        fn describe(&self) -> String {
            "Empty: nothing".to_owned()
        }
        fn scene(&self, width: i32) -> crate::Result<Scene> {
            Ok(Scene::new(width, 100))
        }
    }
    let alone = Figure::new(Empty).unwrap();
    let beside = side_by_side(&[alone.clone(), alone.clone()]).unwrap();
    assert!(beside.scene().width > alone.scene().width);
    assert!(beside.scene().width < 2 * alone.scene().width);
    assert_eq!(beside.text(), "Empty: nothing\nEmpty: nothing");
}

/// The tick labels, from left to right or from bottom to top.
fn ticks(axis: &crate::axes::Axis) -> Vec<&str> {
    axis.ticks.iter().map(|(_, text)| text.as_str()).collect()
}

#[test]
fn the_marks_line_is_at_its_position_and_its_text_above_the_plot() {
    let chart = |mark: f64| {
        let chart = LineChart::new("", "rate", "loss").log_x().line("", [1e-4, 1.0], [1, 2]);
        chart.mark(mark, "chosen").draw().unwrap().scene().clone()
    };
    let mark = |scene: &Scene| {
        let dashed = scene.shapes.iter().find_map(|shape| match shape {
            Shape::Line { points, dash, .. } if !dash.is_empty() => Some(points.clone()),
            _ => None,
        });
        dashed.unwrap()
    };
    let [low, middle, high] = [1e-4, 1e-2, 1.0].map(|at| mark(&chart(at))[0].0);
    assert!((middle - low).abs_diff(high - middle) <= 1, "{low}, {middle}, {high}");
    let scene = chart(1e-2);
    let (text, _) = *texts(&scene).iter().find(|(_, text)| *text == "chosen").unwrap();
    assert!(text.3 <= mark(&scene)[1].1, "the text is above the line");
    assert!(text.0 < middle && middle < text.2, "and over it");
}

#[test]
fn error_bars_span_the_error_and_references_have_no_markers() {
    let figure = calibration().draw().unwrap();
    let shapes = &figure.scene().shapes;
    let bars = shapes.iter().filter_map(|shape| match shape {
        Shape::Line { points, stroke, .. }
            if *stroke == PALETTE[0] && points[0].0 == points[1].0 =>
        {
            Some(points[0].1 - points[1].1)
        }
        _ => None,
    });
    let bars: Vec<_> = bars.skip(1).collect(); // after that of the legend
    assert_eq!(bars.len(), 3);
    assert!(bars[1] > 200 && (bars[0] * 42).abs_diff(bars[1] * 75) < 500, "{bars:?}");
    let markers = shapes.iter().filter(|shape| matches!(shape, Shape::Circle { .. })).count();
    assert_eq!(markers, 2 * (3 + 1), "with an outline each, in the plot and in the legend");
}

#[test]
fn the_diagonal_of_a_heat_map_is_outside_the_color_scale() {
    let figure = heat_map("", "true", "predicted", 0..3, &[[900, 0, 1], [4, 9, 0], [0, 2, 900]]);
    let figure = figure.unwrap();
    let fills = figure.scene().shapes.iter().filter_map(|shape| match shape {
        Shape::Rect { fill, .. } => Some(*fill),
        _ => None,
    });
    let fills: Vec<_> = fills.collect();
    assert!(fills[0] == fills[4] && fills[4] == fills[8], "the diagonal has one color");
    let is_gray =
        |(red, green, blue): super::scene::Color| red.abs_diff(blue).max(green.abs_diff(red)) < 16;
    assert!(is_gray(fills[0]), "{fills:?}");
    assert_eq!(fills[3], (0x08, 0x40, 0x80), "the most frequent mistake is the darkest");
}

#[test]
fn zero_is_white_in_signed_pictures_and_pictures_of_a_figure_have_one_size_and_scale() {
    let small = Picture::signed(&[0.25, 0.0, -0.5, 0.0], 2, 2).unwrap();
    let rows = [("a", vec![kernel()]), ("b", vec![small])];
    let figure = picture_rows("", &rows).unwrap();
    let pictures = figure.scene().shapes.iter().filter_map(|shape| match shape {
        Shape::Picture(picture) => Some(picture),
        _ => None,
    });
    let pictures: Vec<_> = pictures.collect();
    let [large, small, _scale] = pictures[..] else { panic!("{} pictures", pictures.len()) };
    let color =
        |picture: &super::raster::Picture, at: usize| picture.colors.color(picture.levels[at]);
    assert_eq!(color(large, 1), (255, 255, 255));
    assert_eq!(color(small, 1), (255, 255, 255));
    assert_eq!(small.levels, [23, 15, 0, 15], "0.5 is the end of the scale");
    assert_eq!(large.levels[..3], [6, 15, 30]);
    let side = |picture: &super::raster::Picture| picture.pixel * picture.width as i32;
    assert!(side(large).abs_diff(side(small)) < 10, "{} and {}", side(large), side(small));
}

#[test]
fn similar_colors_have_different_markers() {
    assert_eq!(CLASS_COLORS[0], PALETTE[0]);
    let (_, figure) = scatter_charts().swap_remove(0);
    let legend = figure.scene().shapes.iter().filter_map(|shape| match shape {
        Shape::Circle { fill, .. } => Some((*fill, 0)),
        Shape::Polygon { points, fill } => Some((*fill, points.len())),
        _ => None,
    });
    let legend: Vec<_> = legend.take(10).collect();
    // The two blues, which are the most alike of those that might share a shape.
    assert_ne!(legend[0].1, legend[5].1);
}

#[test]
fn axes_have_round_ticks() {
    use crate::axes::{Axis, Scale};
    let around = |scale, extent| Axis::around("", scale, extent, 6);
    assert_eq!(ticks(&around(Scale::Whole, (1.0, 10.0))), ["2", "4", "6", "8", "10"]);
    assert_eq!(ticks(&around(Scale::Whole, (1.0, 1.0))), ["1"]);
    assert_eq!(ticks(&around(Scale::Whole, (1.0, 3.0))), ["1", "2", "3"]);
    let steps = ticks(&around(Scale::Whole, (0.0, 5062.0))).join(" ");
    assert_eq!(steps, "0 1000 2000 3000 4000 5000");
    let noise = ticks(&around(Scale::Linear, (0.0, 1.0))).join(" ");
    assert_eq!(noise, "0.0 0.2 0.4 0.6 0.8 1.0");
    let rates = ticks(&around(Scale::Log, (1e-5, 1.0))).join(" ");
    assert_eq!(rates, "10⁻⁵ 10⁻⁴ 10⁻³ 10⁻² 10⁻¹ 1");
    assert_eq!(
        ticks(&around(Scale::Log, (0.003, 0.8))).join(" "),
        "0.005 0.01 0.02 0.05 0.1 0.2 0.5"
    );
    let losses = ticks(&around(Scale::Log, (0.02, 0.3))).join(" ");
    assert_eq!(losses, "0.02 0.05 0.1 0.2");
    let sizes = ticks(&around(Scale::Log, (1e-9, 1e9))).join(" ");
    assert_eq!(sizes, "10⁻⁹ 10⁻⁶ 10⁻³ 1 10³ 10⁶ 10⁹");
    assert_eq!(ticks(&around(Scale::Log, (0.95, 0.99))).len(), 5);
}

#[test]
fn captions_of_neighbors_do_not_touch() {
    let picture = |index| {
        Picture::new(&[0.5; 784], 28, 28).unwrap().caption(format!("6 (is {index}) 99.0 %"))
    };
    for count in [4, 12, 24, 60] {
        let pictures: Vec<_> = (0..count).map(picture).collect();
        let figure = picture_grid("", &pictures).unwrap();
        let mut boxes: Vec<Box> = texts(figure.scene()).iter().map(|(found, _)| *found).collect();
        boxes.sort_by_key(|(left, top, ..)| (*top, *left));
        let mut neighbors = boxes.windows(2).filter(|pair| pair[0].1 == pair[1].1);
        assert!(neighbors.all(|pair| pair[1].0 - pair[0].2 >= 60), "{count} pictures");
    }
}

#[test]
fn a_cell_shows_a_png_unless_its_font_lacks_a_letter() {
    let chart = |title| line_chart(title, "epoch", "loss", &[("test", [1.0, 2.0])]).unwrap();
    // The signature of a PNG file.
    assert!(chart("Loss").png().is_some_and(|png| png.starts_with("iVBORw0KGgo")));
    assert_eq!(chart("損失").png(), None);
}
