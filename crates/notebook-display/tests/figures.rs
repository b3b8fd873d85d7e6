//! Output of notebook cells: figures as SVG with a text alternative, and tables.

use notebook_display::{
    Figure, LineChart, Picture, Table, bar_chart, heat_map, line_chart, picture_grid,
    scatter_chart, side_by_side,
};
use roxmltree::Document;

fn loss() -> Figure {
    let series = [("training & more", [0.1326_f32, 0.0403]), ("test", [0.0561, 0.0387])];
    line_chart("Loss <per> epoch", "epoch", "cross-entropy (nats)", &series).unwrap()
}

fn counts() -> Figure {
    bar_chart("Images per digit", "digit", "images", 0..2, [5923, 6742]).unwrap()
}

fn confusion() -> Figure {
    heat_map("Confusion", "true", "predicted", [3, 5], &[[1005, 5], [2, 890]]).unwrap()
}

fn features() -> Figure {
    let points = [[0.5, 1.0], [2.0, -1.0], [0.7, 1.1]];
    scatter_chart("Features", "first", "second", &points, &["three", "eight", "three"]).unwrap()
}

/// 28 × 28 pixels of uniform noise.
fn noise(seed: u32) -> Picture {
    let mut state = seed;
    let pixels: Vec<f32> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    })
    .take(28 * 28)
    .collect();
    Picture::new(&pixels, 28, 28).unwrap()
}

fn digits() -> Figure {
    let picture = |caption| noise(1).caption(caption);
    picture_grid("Digits", &["seven", "two"].map(picture)).unwrap()
}

/// All texts in the figure, including title and description.
fn texts(figure: &Figure) -> Vec<String> {
    let document = Document::parse(figure.svg()).expect("well-formed XML");
    let texts = document.descendants().filter(|node| node.is_text());
    texts.filter_map(|node| node.text()).map(|text| text.trim().to_owned()).collect()
}

fn assert_shows(figure: &Figure, expected: &[&str]) {
    let texts = texts(figure);
    for text in expected {
        assert!(texts.iter().any(|found| found == text), "`{text}` is not among {texts:?}");
    }
}

#[test]
fn figures_show_their_titles_labels_and_names() {
    assert_shows(
        &loss(),
        &["Loss <per> epoch", "epoch", "cross-entropy (nats)", "training & more"],
    );
    assert_shows(&counts(), &["Images per digit", "digit", "images", "0", "1", "5923", "6742"]);
    assert_shows(&confusion(), &["Confusion", "true", "predicted", "3", "5", "1005", "890"]);
    assert_shows(&features(), &["Features", "first", "second", "three", "eight"]);
    assert_shows(&digits(), &["Digits", "seven", "two"]);
}

#[test]
fn figures_scale_and_are_accessible_to_screen_readers() {
    for figure in [
        loss(),
        counts(),
        confusion(),
        features(),
        digits(),
        side_by_side(&[loss(), counts()]).unwrap(),
    ] {
        let document = Document::parse(figure.svg()).expect("well-formed XML");
        let svg = document.root_element();
        assert_eq!(svg.attribute("role"), Some("img"));
        let size =
            format!("0 0 {} {}", svg.attribute("width").unwrap(), svg.attribute("height").unwrap());
        assert_eq!(svg.attribute("viewBox"), Some(size.as_str()));
        let child =
            |name| svg.children().find(|node| node.has_tag_name(name)).and_then(|node| node.text());
        assert!(child("title").is_some_and(|title| !title.is_empty()));
        let described = child("desc").unwrap_or_default();
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(described), words(figure.text()));
    }
}

#[test]
fn the_text_alternative_gives_the_data() {
    assert_eq!(
        loss().text(),
        "Loss <per> epoch: cross-entropy (nats) by epoch, 1 to 2\n  \
         training & more: 0.1326 to 0.0403, between 0.0403 and 0.1326\n  \
         test: 0.0561 to 0.0387, between 0.0387 and 0.0561"
    );
    assert_eq!(
        confusion().text(),
        "Confusion: rows true, columns predicted: 3, 5\n  true 3: 1005, 5\n  true 5: 2, 890"
    );
}

#[test]
fn panels_side_by_side_keep_their_titles_and_fit_a_notebook() {
    let figure = side_by_side(&[loss(), counts()]).unwrap();
    assert_shows(
        &figure,
        &["Loss <per> epoch", "Images per digit", "Loss <per> epoch, Images per digit"],
    );
    let document = Document::parse(figure.svg()).unwrap();
    let width: f64 = document.root_element().attribute("width").unwrap().parse().unwrap();
    assert!((600.0..=900.0).contains(&width), "{width}");
}

#[test]
fn hostile_text_stays_well_formed() {
    let name = "</text> & \" ' \u{1} \u{ffff} \n EVCXR_END_CONTENT";
    let figure = line_chart(name, name, name, &[(name, [1.0]), (name, [2.0])]).unwrap();
    Document::parse(figure.svg()).expect("well-formed XML");
    let figure = picture_grid(name, &[Picture::new(&[0.0], 1, 1).unwrap().caption(name)]).unwrap();
    Document::parse(figure.svg()).expect("well-formed XML");
}

#[test]
fn pictures_take_little_space_in_the_notebook() {
    // Noise is the worst case; real digits take a fifth.
    let pictures: Vec<Picture> = (0..25).map(|seed| noise(seed).caption(0)).collect();
    let svg = picture_grid("Noise", &pictures).unwrap().svg().len();
    assert!(svg / 25 < 12_000, "{} bytes a picture", svg / 25);
}

#[test]
fn invalid_data_is_refused_with_its_name() {
    let message = |series: &[(&str, Vec<f32>)]| {
        line_chart("Loss", "epoch", "loss", series).unwrap_err().to_string()
    };
    assert_eq!(message(&[]), "`Loss`: expected 1 to 7 series, found 0");
    assert_eq!(message(&[("test", vec![])]), "`Loss`: series `test` is empty");
    assert_eq!(
        message(&[("test", vec![0.5, f32::NAN])]),
        "`Loss`: series `test` is NaN at position 2"
    );
    let refused = bar_chart("Counts", "digit", "images", 0..1, [-1]).unwrap_err().to_string();
    assert_eq!(refused, "`Counts`: bar `0` is -1, but must be finite and 0 or more");
    let refused = heat_map("Map", "true", "predicted", 0..2, &[[1, 2]]).unwrap_err().to_string();
    assert_eq!(refused, "`Map`: 2 names need a 2 × 2 matrix, found rows of length [2]");
    let refused = Picture::new(&[0.0; 5], 2, 3).unwrap_err().to_string();
    assert_eq!(refused, "2 × 3 pixels are 6 values, not 5");
    let scatter = |points: &[Vec<f32>], classes: &[u32]| {
        scatter_chart("Points", "x", "y", points, classes).unwrap_err().to_string()
    };
    let point = || vec![0.0, 1.0];
    assert_eq!(scatter(&[], &[]), "`Points`: expected 1 to 5000 points, found 0");
    assert_eq!(scatter(&[point()], &[1, 2]), "`Points`: found 2 classes for 1 points");
    assert_eq!(
        scatter(&[point(), vec![0.0; 3]], &[1, 1]),
        "`Points`: point 2 has 3 numbers, expected x and y"
    );
    assert_eq!(
        scatter(&[point(), vec![0.0, f32::NAN]], &[1, 1]),
        "`Points`: point 2 is (0, NaN), but must be finite"
    );
    assert_eq!(
        scatter(&vec![point(); 11], &(0..11).collect::<Vec<_>>()),
        "`Points`: expected at most 10 classes, found 11"
    );
    assert!(picture_grid("None", &[]).is_err());
    assert!(side_by_side(&[]).is_err());
    assert!(side_by_side(&[loss(), loss(), loss(), loss(), loss()]).is_err());
}

#[test]
fn extreme_values_are_drawn_or_refused_but_never_panic() {
    for values in [[f64::MAX, f64::MIN], [f64::MIN_POSITIVE, 0.0], [1e299, -1e299], [5e-324, 1.0]] {
        if let Ok(figure) = line_chart("Loss", "epoch", "loss", &[("a", values)]) {
            Document::parse(figure.svg()).expect("well-formed XML");
        }
        let log = LineChart::new("Loss", "epoch", "loss").log_x().log_y();
        if let Ok(figure) = log.line("a", values, values).draw() {
            Document::parse(figure.svg()).expect("well-formed XML");
        }
        if let Ok(figure) = scatter_chart("Points", "x", "y", &[values, [0.0, 1.0]], &["a", "b"]) {
            Document::parse(figure.svg()).expect("well-formed XML");
        }
    }
    for value in [0.0, 5e-324, 1e299, f64::MAX] {
        if let Ok(figure) = bar_chart("Bars", "kind", "count", ["a"], [value]) {
            Document::parse(figure.svg()).expect("well-formed XML");
        }
        if let Ok(figure) = heat_map("Map", "true", "predicted", ["a"], &[[value]]) {
            Document::parse(figure.svg()).expect("well-formed XML");
        }
    }
}

#[test]
fn a_figure_is_saved_in_the_format_of_the_extension() {
    let folder = tempfile::tempdir().unwrap();
    let figure = loss();
    let svg = folder.path().join("loss.svg");
    figure.save(&svg).unwrap();
    assert_eq!(std::fs::read_to_string(svg).unwrap(), figure.svg());

    let message = figure.save(folder.path().join("loss.jpg")).unwrap_err().to_string();
    assert!(message.ends_with("loss.jpg` must end in .svg or .png"), "{message}");
    let message = figure.save(folder.path().join("none/loss.svg")).unwrap_err().to_string();
    assert!(message.contains("none"), "{message}");
}

#[test]
fn a_png_has_twice_the_size_of_the_figure_and_is_not_blank() {
    let folder = tempfile::tempdir().unwrap();
    for figure in [loss(), counts(), confusion(), features(), digits()] {
        let path = folder.path().join("figure.PNG");
        figure.save(&path).unwrap();
        let png = std::fs::read(path).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
        let side = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        let document = Document::parse(figure.svg()).unwrap();
        let expected =
            |name| document.root_element().attribute(name).unwrap().parse::<f64>().unwrap() * 2.0;
        assert_eq!(f64::from(side(16)), expected("width").ceil());
        assert_eq!(f64::from(side(20)), expected("height").ceil());
        assert!(png.len() > 1500, "{} bytes", png.len());
    }
}

/// The PNG file of a figure with this title.
fn png(title: &str) -> notebook_display::Result<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("figure.png");
    line_chart(title, "epoch", "loss", &[("test", [1.0, 2.0])])?.save(&path)?;
    Ok(std::fs::read(path).unwrap())
}

#[test]
fn a_png_shows_all_letters_or_is_refused_with_those_that_it_lacks() {
    let mut files = vec![png("        ").unwrap()];
    for title in ["Функция потерь", "Łódź, ždímat", "∞ ≠ ∂ΣΩ", "cafe\u{301} €"]
    {
        let file = png(title).unwrap();
        assert!(!files.contains(&file), "`{title}` looks like another title");
        files.push(file);
    }
    let message = png("损失 😀 loss\u{fe0f}").map(drop).unwrap_err().to_string();
    assert_eq!(
        message,
        "cannot create a PNG: its font lacks '失', '损', '\\u{fe0f}', '😀'; save the figure as .svg"
    );
    assert!(png("two\nlines").is_ok());
}

#[test]
fn a_table_has_the_same_cells_as_text_and_as_html() {
    let rows = [["Conv_0", "[28, 28, 32]", "320"], ["Dense_0", "[256]", "803,072"]];
    let table = Table::new(&["layer", "output", "parameters"], &rows).unwrap();
    let html = table.html();
    let document = Document::parse(&html).expect("well-formed");
    let cells =
        document.descendants().filter(|node| node.has_tag_name("td") || node.has_tag_name("th"));
    let text = table.to_string();
    for cell in cells {
        assert!(text.contains(cell.text().unwrap()), "{cell:?}");
    }
    let ends: Vec<_> = text.lines().skip(2).map(|line| line.chars().count()).collect();
    assert_eq!(ends[0], ends[1], "numbers end in one column:\n{text}");
}

#[test]
fn lines_over_numbers_are_described_with_their_positions_and_marks() {
    let figure = LineChart::new("Range test", "learning rate", "loss")
        .log_x()
        .line("training", [1e-4, 1e-2], [2.3_f32, 0.5])
        .reference("chance", [1e-4, 1e-2], [2.3, 2.3])
        .points_with_errors("test", [1e-3], [1.0], [0.25])
        .mark(0.004, "chosen");
    assert_eq!(
        figure.draw().unwrap().text(),
        "Range test: loss by learning rate, 0.0001 to 0.01\n  \
         training: 2.3 to 0.5, between 0.5 and 2.3\n  \
         chance: 2.3 to 2.3, between 2.3 and 2.3\n  \
         test: 1 to 1, between 1 and 1, errors up to 0.25\n  \
         at 0.004: chosen"
    );
}

#[test]
fn invalid_lines_are_refused_with_the_series_and_the_position() {
    let chart = || LineChart::new("Loss", "x", "y");
    let message = |chart: LineChart| chart.draw().unwrap_err().to_string();
    let found = message(chart().line("a", [1, 2], [0.5, 1.2, 3.4]));
    assert_eq!(found, "`Loss`: series `a` has 3 values for 2 positions");
    assert!(chart().line("a", 1.., [0.5, 1.2, 3.4]).draw().is_ok());
    let found = message(chart().log_y().line("a", 1.., [0.5, 0.0]));
    assert_eq!(
        found,
        "`Loss`: series `a` is 0, which a logarithmic axis cannot show, at position 2"
    );
    let found = message(chart().log_x().line("a", 0..2, [0.5, 1.0]));
    assert_eq!(
        found,
        "`Loss`: series `a` has the position 0, which a logarithmic axis cannot show, (number 1)"
    );
    let found = message(chart().line("a", [f64::NAN], [1.0]));
    assert_eq!(found, "`Loss`: series `a` has the position NaN (number 1)");
    let found = message(chart().line("a", [1], [1]).mark(f64::INFINITY, "end"));
    assert_eq!(found, "`Loss`: the mark `end` is at inf");
    let found = message(chart().points_with_errors("a", [1, 2], [1, 2], [0.5]));
    assert_eq!(found, "`Loss`: series `a` has 1 errors for 2 values");
    let found = message(chart().points_with_errors("a", [1], [1], [-0.5]));
    assert_eq!(found, "`Loss`: series `a` has the error -0.5, but must be finite and 0 or more");
    let found = bar_chart("Bars", "a", "b", 0..3, [1, 2]).unwrap_err().to_string();
    assert_eq!(found, "`Bars`: found 3 names for 2 values");
    let found = Picture::signed(&[f32::INFINITY], 1, 1).unwrap_err().to_string();
    assert_eq!(found, "a signed picture has the value inf");
}

#[test]
fn an_error_bar_may_end_below_a_logarithmic_axis() {
    let chart = LineChart::new("Loss", "x", "y").log_y();
    let figure = chart.points_with_errors("a", [1, 2], [0.1, 1.0], [0.2, 0.2]).draw().unwrap();
    assert!(!figure.svg().contains("NaN"), "{}", figure.svg());
}

#[test]
fn the_png_beside_a_figure_is_small() {
    let folder = tempfile::tempdir().unwrap();
    let wide = side_by_side(&[loss(), loss()]).unwrap();
    let pictures: Vec<Picture> = (0..24).map(|seed| noise(seed).caption("3 (is 5)")).collect();
    let noise = picture_grid("Noise", &pictures).unwrap();
    for (figure, most) in [(loss(), 30_000), (wide, 40_000), (confusion(), 20_000), (noise, 99_000)]
    {
        let path = folder.path().join("figure.png");
        figure.save(&path).unwrap();
        let bytes = std::fs::metadata(path).unwrap().len();
        assert!(bytes < most, "{}: {bytes} bytes", figure.text());
    }
}
