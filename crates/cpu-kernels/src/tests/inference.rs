//! Inference: its rounding errors, and that images do not depend on the batch around them.

use proptest::prelude::*;

use super::*;
use crate::purpose::Purpose;

fn log_probabilities(case: &Case, batch: usize, images: &[f32]) -> Vec<f32> {
    let [_, height, width, channels] = case.shape;
    let mut program = Program::new([batch, height, width, channels], &case.layers).unwrap();
    let classes = case.params.last().unwrap().len();
    let mut log_probs = vec![f32::NAN; images.len() / (height * width * channels) * classes];
    program.log_probabilities(&case.params(), images, &mut log_probs).unwrap();
    log_probs
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Sizes at which tiles of 4×4 end at the border, exceed it, or do not pay.
    #[test]
    fn a_convolution_matches_plain_loops(
        (height, width) in (1..=19usize, 1..=19usize),
        (in_channels, out_channels) in (8..=40usize, 8..=40usize),
        seed: u64,
    ) {
        let kernel = (3, 3);
        let conv = Conv2d { batch: 1, height, width, in_channels, out_channels, kernel };
        let mut random = Random(seed);
        let image = random.values(conv.input_len());
        let kernel = random.values(conv.kernel_len());
        let bias = random.values(out_channels);
        let mut packed = vec![f32::NAN; conv.packed_len(Purpose::Inference)];
        conv.transform_weights(Purpose::Inference, &kernel, &mut packed);
        let mut padded = vec![f32::NAN; conv.padded_len()];
        conv.clear_border(&mut padded);
        conv.pad(&image, conv.low_padding(), &mut padded);
        let mut output = vec![f32::NAN; conv.output_len()];
        conv.output_rows(Purpose::Inference, &padded, &packed, Some(&bias), 0, &mut output);
        let expected = reference::conv(&conv, &to_f64(&image), &to_f64(&kernel), &to_f64(&bias));
        assert_close(&format!("{conv:?}"), &output, &expected, 1e-5);
    }

    #[test]
    fn an_image_does_not_depend_on_the_batch_around_it(seed: u64, batch in 1..=7usize) {
        let case = Case::random(&mut Random(seed));
        let together = bits(&log_probabilities(&case, case.shape[0], &case.images));
        prop_assert_eq!(&together, &bits(&log_probabilities(&case, batch, &case.images)));
        let alone = case.images.chunks(case.images.len() / case.shape[0]);
        let alone = alone.flat_map(|image| bits(&log_probabilities(&case, batch, image)));
        prop_assert_eq!(together, alone.collect::<Vec<u32>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]

    #[test]
    fn the_tutorial_network_matches_plain_loops(seed: u64) {
        let case = Case::tutorial(&mut Random(seed), 3);
        let (params, images) = (case.params_f64(), to_f64(&case.images));
        let expected = reference::network(case.shape, &case.layers, &params, &images);
        let found = log_probabilities(&case, 2, &case.images);
        assert_close("log-probabilities", &found, &expected, 1e-5);
    }
}

#[test]
fn images_of_the_tutorial_network_depend_neither_on_the_batch_nor_on_the_threads() {
    let case = Case::tutorial(&mut Random(16), 51);
    let run = |threads: usize, batch: usize, images: &[f32]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        bits(&pool.install(|| log_probabilities(&case, batch, images)))
    };
    let expected = run(1, 51, &case.images);
    for (threads, batch) in [(2, 51), (5, 33), (2, 1)] {
        assert!(run(threads, batch, &case.images) == expected, "{threads} threads, {batch} images");
    }
    let image = &case.images[49 * 28 * 28..][..28 * 28];
    assert!(run(2, 1, image) == expected[49 * 10..][..10]);
}

/// What inference leaves in the buffers must not pass for a forward pass of training.
#[test]
fn no_backward_pass_follows_inference() {
    let mut case = Case::tutorial(&mut Random(17), 2);
    let mut program = case.program();
    let mut log_probs = [0.0; 20];
    program.forward(&case.params(), &case.images, &mut log_probs).unwrap();
    program.log_probabilities(&case.params(), &case.images, &mut log_probs).unwrap();
    let mut gradients = case.moments(momentum(0.0, 0.0));
    let mut params = case.params.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
    let mut out = gradients.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>();
    assert!(program.gradients(&mut params, &mut out, &log_probs).is_err());
}
