//! The draw-a-digit panel in a real browser: its JavaScript must compute the crate's probabilities.

use std::path::Path;
use std::sync::LazyLock;

use mnist_notebook_support::linen::Evaluate;
use mnist_notebook_support::notebook::draw_panel;
use mnist_notebook_support::prelude::*;
use serde_json::{Value, json};
use tests::varied_variables;
use xtask::browser::{Device as Screen, is_there, seven, use_panel};
use xtask::project::Project;

const IMAGES: usize = 200;

/// A network trained enough to be sure of some digits and unsure of others.
static PARAMS: LazyLock<Params> = LazyLock::new(|| {
    let params = get_initial_params(&Cnn, Key::new(0), &Device::Cpu).unwrap();
    let mut optimizer = create_optimizer(&params, 0.1, 0.9).unwrap();
    let (train_ds, _) = get_datasets(&Device::Cpu).unwrap();
    let few = train_ds.slice(0, 10_000).unwrap();
    train_epoch(&Cnn, &mut optimizer, &few, 32, 1, Key::new(1)).unwrap();
    optimizer.target().copy().unwrap()
});

/// A function, then a dense layer.
struct Around(fn(&mut Scope, &Tensor) -> Result<Tensor>);

impl Module for Around {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = (self.0)(nn, x)?;
        nn.dense(10, &flatten(&x)?)
    }
}

const STRIDES: Conv =
    Conv { features: 4, kernel_size: (4, 3), strides: (2, 3), padding: Padding::Same };

/// The kinds of layers, with sizes that leave a remainder.
const LAYERS: [(&str, Around); 5] = [
    (
        "convolutions",
        Around(|nn, x| {
            let x = nn.conv_with(&STRIDES, x)?; //                               [B, 14, 10, 4]
            nn.conv_with(&Conv { padding: Padding::Valid, ..STRIDES }, &x) //    [B, 6, 3, 4]
        }),
    ),
    (
        "normalization",
        Around(|nn, x| {
            // The variance of black pixels is 0, where the epsilon counts.
            let x = nn.layer_norm(&concatenate(&[x, &gelu(x)?])?)?;
            let x = nn.conv_with(&STRIDES, &x)?;
            let x = nn.batch_norm(&x)?;
            nn.dropout(0.5, &x)
        }),
    ),
    (
        "activations",
        Around(|nn, x| {
            let x = gelu(&nn.conv_with(&STRIDES, x)?)?;
            log_softmax(&relu(&nn.conv_with(&STRIDES, &x)?)?)
        }),
    ),
    (
        "pooling",
        Around(|nn, x| {
            let x = nn.conv_with(&STRIDES, x)?;
            avg_pool(&max_pool(&x, (2, 3))?, (3, 1)) //                          [B, 2, 3, 4]
        }),
    ),
    (
        "branches",
        Around(|nn, x| {
            let x = nn.conv_with(&STRIDES, x)?;
            let y = nn.conv(4, (2, 3), &x)?;
            let x = concatenate(&[&nn.conv(3, (1, 1), &x)?, &add(&x, &y)?, &y])?;
            global_avg_pool(&x) //                                               [B, 11]
        }),
    ),
];

/// All kinds of layers together, with branches.
struct Everything;

impl Module for Everything {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = nn.conv_with(&Conv { strides: (2, 2), ..Conv::new(8, (3, 3)) }, x)?;
        let x = relu(&nn.batch_norm(&x)?)?; //                              [B, 14, 14, 8]
        let x = nn.dropout(0.25, &x)?;
        let y = nn.conv(8, (3, 3), &x)?;
        let x = gelu(&add(&x, &nn.batch_norm(&y)?)?)?;
        let valid = Conv { padding: Padding::Valid, ..Conv::new(6, (3, 3)) };
        let narrow = nn.conv_with(&valid, &x)?; //                          [B, 12, 12, 6]
        let wide = nn.conv_with(&Conv { features: 4, ..valid }, &x)?; //    [B, 12, 12, 4]
        let x = nn.layer_norm(&concatenate(&[&narrow, &wide])?)?; //        [B, 12, 12, 10]
        let pooled = flatten(&max_pool(&avg_pool(&x, (2, 2))?, (4, 3))?)?; // [B, 20]
        let x = concatenate(&[&global_avg_pool(&x)?, &pooled])?; //         [B, 30]
        let x = nn.dropout(0.5, &x)?;
        log_softmax(&nn.dense(10, &x)?)
    }
}

/// What the panel of a network shows in a browser; `None` if there is no browser.
fn panel(
    model: &impl Module,
    variables: &impl Evaluate,
    screen: Screen,
    images: &Tensor,
) -> Option<Value> {
    page(draw_panel(model, variables).unwrap().html(), screen, images)
}

/// What the panel in a page shows in a browser; `None` if there is no browser.
fn page(html: &str, screen: Screen, images: &Tensor) -> Option<Value> {
    let project = Project::new();
    let no_python = "the Python environment is not set up (`cargo xtask test` does it)";
    let is_ready = is_there().and(project.python().is_file().then_some(()).ok_or(no_python));
    if let Err(reason) = is_ready {
        tests::skipped("the panel in a browser", reason);
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("panel.html");
    std::fs::write(&page, html).unwrap();
    let images: Vec<Vec<f32>> = images.flatten_from(1).unwrap().to_vec2().unwrap();
    let request = json!({"images": images, "strokes": seven()});
    let screenshot = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/draw_panel.png");
    Some(use_panel(&project, &page, &screenshot, screen, &request).unwrap())
}

fn test_images() -> Tensor {
    let (_, test_ds) = get_datasets(&Device::Cpu).unwrap();
    test_ds.slice(0, IMAGES).unwrap().image().clone()
}

fn numbers(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |largest, (a, b)| f32::max(largest, (a - b).abs()))
}

/// The crate's probabilities, flattened.
fn probabilities(model: &impl Module, variables: &impl Evaluate, images: &Tensor) -> Vec<f32> {
    let logits = log_softmax(model.apply_eval(variables, images).unwrap()).unwrap();
    logits.exp().unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that the panel computes the crate's probabilities; `false` if there is no browser.
fn assert_same(name: &str, model: &impl Module, variables: &impl Evaluate, most: f32) -> bool {
    let images = test_images();
    let Some(answer) = panel(model, variables, Screen::Desktop, &images) else { return false };
    let found: Vec<f32> =
        answer["probabilities"].as_array().unwrap().iter().flat_map(numbers).collect();
    let difference = largest_difference(&found, &probabilities(model, variables, &images));
    assert!(difference <= most, "{name}: {difference}");
    true
}

#[test]
fn the_panel_computes_the_crates_probabilities_for_test_images() {
    assert_same("the tutorial's network", &Cnn, &*PARAMS, 1e-3);
}

#[test]
fn the_panel_evaluates_every_kind_of_layer() {
    for (name, model) in LAYERS {
        let variables = varied_variables(&model, &[1, 28, 28, 1]).unwrap();
        if !assert_same(name, &model, &variables, 1e-5) {
            return;
        }
    }
}

#[test]
fn the_panel_evaluates_branches_in_evaluation_mode() {
    let variables = varied_variables(&Everything, &[1, 28, 28, 1]).unwrap();
    // As small as the epsilon of batch norm, which then counts.
    let var = variables.batch_stats.get("BatchNorm_0/var").unwrap();
    var.set(&(var.as_tensor() * 1e-4).unwrap()).unwrap();
    assert_same("everything", &Everything, &variables, 1e-5);
}

#[test]
fn a_drawing_is_prepared_and_predicted_as_in_the_crate() {
    let images = test_images().narrow(0, 0, 1).unwrap();
    for screen in [Screen::Desktop, Screen::Phone] {
        let Some(answer) = panel(&Cnn, &*PARAMS, screen, &images) else { return };
        let drawing = numbers(&answer["drawing"]);
        let drawing = Tensor::from_vec(drawing, (1, 280, 280, 1), &Device::Cpu).unwrap();
        let digit = prepare_digit(&drawing).unwrap();
        let pixels: Vec<f32> = digit.flatten_all().unwrap().to_vec1().unwrap();
        assert!(largest_difference(&numbers(&answer["image"]), &pixels) <= 1e-5, "{screen:?}");

        let expected = probabilities(&Cnn, &*PARAMS, &digit);
        let difference = largest_difference(&numbers(&answer["drawn"]), &expected);
        assert!(difference <= 1e-3, "{screen:?}: {difference}");
        let percents: Vec<f32> = expected.iter().map(|share| share * 100.0).collect();
        let shown = numbers(answer["states"].as_array().unwrap().last().unwrap());
        let difference = largest_difference(&shown, &percents);
        assert!(difference <= 0.1 + 0.05, "{screen:?}: {difference}"); // 1e-3, and rounding
        assert_eq!(answer["answer"], "This looks like a 7.", "{screen:?}");
        assert_eq!(answer["by_keyboard"], "This looks like a 1.", "{screen:?}");
    }
}

#[test]
fn the_panel_updates_while_drawing_and_is_cleared_by_keyboard() {
    let images = test_images().narrow(0, 0, 1).unwrap();
    for screen in [Screen::Desktop, Screen::Phone] {
        let Some(answer) = panel(&Cnn, &*PARAMS, screen, &images) else { return };
        assert_eq!(numbers(&answer["cleared"]), [0.0; 10], "{screen:?}");
        let states: Vec<_> = answer["states"].as_array().unwrap().iter().map(numbers).collect();
        assert!(states.len() > 2, "{screen:?}: {states:?}");
        let sums = states.iter().map(|state| state.iter().sum::<f32>());
        assert!(sums.into_iter().all(|sum| (sum - 100.0).abs() < 0.6), "{screen:?}: {states:?}");
        let (first, last) = (&states[0], &states[states.len() - 1]);
        assert!(largest_difference(first, last) > 1.0, "{screen:?}: {states:?}");
        assert_eq!(answer["overflow"], 0, "{screen:?}");
    }
}

#[test]
fn the_panel_follows_the_theme_of_the_notebook_around_it() {
    let panel = draw_panel(&Cnn, &*PARAMS).unwrap();
    let panel = panel.html().replace('&', "&amp;").replace('"', "&quot;");
    let images = test_images().narrow(0, 0, 1).unwrap();
    let [light, dark] = [json!("rgb(255, 255, 255)"), json!("rgb(27, 27, 27)")];
    for (theme, first) in [("true", &light), ("false", &dark)] {
        let html = format!(
            "<body data-jp-theme-light=\"{theme}\"><iframe title=\"Draw a digit\" \
             srcdoc=\"{panel}\" style=\"width: 100%\"></iframe><p></p></body>"
        );
        let Some(answer) = page(&html, Screen::Desktop, &images) else { return };
        assert_eq!(answer["backgrounds"], json!([first, light, dark]), "{theme}");
    }
}
