//! Programs of networks with branches.

use cpu_kernels::{
    GraphProgram, KernelError, Layer, Mode, Node, Padding, Program, UpdateRule, check_graph,
};

const BATCH: usize = 19;
const SHAPE: [usize; 4] = [BATCH, 9, 8, 3];

/// Reproducible values in [-1, 1).
fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn conv(features: usize, params: (usize, usize)) -> Layer {
    Layer::Conv { kernel_size: (3, 3), features, params }
}

fn node(layer: Layer, inputs: &[usize]) -> Node {
    Node { layer, inputs: inputs.to_vec() }
}

/// The layers one after the other.
fn chain(layers: &[Layer]) -> Vec<Node> {
    layers.iter().enumerate().map(|(index, layer)| node(layer.clone(), &[index])).collect()
}

/// A residual block with a strided shortcut, and the lengths of its parameters.
fn residual() -> (Vec<Node>, Vec<usize>) {
    let strides = (2, 2);
    let strided = |kernel_size, params| Layer::GeneralConv {
        kernel_size,
        strides,
        padding: Padding::Same,
        features: 12,
        params,
    };
    let nodes = vec![
        node(strided((3, 3), (0, 1)), &[0]),
        node(Layer::BatchNorm { params: (2, 3) }, &[1]),
        node(Layer::Relu, &[2]),
        node(conv(12, (4, 5)), &[3]),
        node(Layer::BatchNorm { params: (6, 7) }, &[4]),
        node(strided((1, 1), (8, 9)), &[0]),
        node(Layer::Add, &[5, 6]),
        node(Layer::Relu, &[7]),
        node(Layer::Dropout { rate: 0.5, name: (0, 0) }, &[8]),
        node(Layer::GlobalAvgPool, &[9]),
        node(Layer::Dense { features: 4, params: (10, 11) }, &[10]),
        node(Layer::LogSoftmax, &[11]),
    ];
    let lens = vec![27 * 12, 12, 12, 12, 108 * 12, 12, 12, 12, 3 * 12, 12, 12 * 4, 4];
    (nodes, lens)
}

fn params(lens: &[usize]) -> Vec<Vec<f32>> {
    let seeds = 1..;
    lens.iter().zip(seeds).map(|(&len, seed)| values(seed, len)).collect()
}

fn slices(values: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
    values.iter_mut().map(Vec::as_mut_slice).collect()
}

fn refs(values: &[Vec<f32>]) -> Vec<&[f32]> {
    values.iter().map(Vec::as_slice).collect()
}

/// Drops every other value.
fn dropout(_index: usize, first: usize, factors: &mut [f32]) {
    for (index, factor) in factors.iter_mut().enumerate() {
        *factor = if (first + index).is_multiple_of(2) { 2.0 } else { 0.0 };
    }
}

const TRAINING: Mode = Mode::Train { dropout: &dropout };

fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{found} {expected}");
    }
}

#[test]
fn a_chain_gives_the_same_as_a_graph() {
    let layers = [
        conv(8, (0, 1)),
        Layer::Relu,
        Layer::MaxPool { window: (2, 2) },
        conv(9, (2, 3)),
        Layer::Relu,
        Layer::AvgPool { window: (2, 2) },
        Layer::Flatten,
        Layer::Dense { features: 5, params: (4, 5) },
        Layer::LogSoftmax,
    ];
    let lens = [27 * 8, 8, 72 * 9, 9, 36 * 5, 5];
    let mut params = params(&lens);
    let images = values(50, SHAPE.iter().product());
    let d_output = values(51, BATCH * 5);
    let (mut expected, mut found) = (vec![0.0; BATCH * 5], vec![0.0; BATCH * 5]);
    let mut of_chain = lens.map(|len| vec![0.0; len]);
    let mut of_graph = of_chain.clone();

    let mut program = Program::new(SHAPE, &layers).unwrap();
    program.forward(&refs(&params), &images, &mut expected).unwrap();
    program.gradients(&mut slices(&mut params), &mut slices(&mut of_chain), &d_output).unwrap();
    let mut program = GraphProgram::new(&SHAPE, &chain(&layers)).unwrap();
    program.forward(&refs(&params), TRAINING, &images, &mut found).unwrap();
    program.gradients(&mut slices(&mut params), &mut slices(&mut of_graph), &d_output).unwrap();

    assert_close(&found, &expected);
    for (found, expected) in of_graph.iter().zip(&of_chain) {
        assert_close(found, expected);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (nodes, lens) = residual();
    let images = values(50, SHAPE.iter().product());
    let train = || {
        let mut params = params(&lens);
        let mut moments = lens.iter().map(|&len| vec![0.0; len]).collect::<Vec<_>>();
        let mut program = GraphProgram::new(&SHAPE, &nodes).unwrap();
        let mut output = vec![0.0; BATCH * 4];
        let rule = UpdateRule::Momentum { learning_rate: 0.01, beta: 0.9, nesterov: false };
        for seed in 60..63 {
            program.forward(&refs(&params), TRAINING, &images, &mut output).unwrap();
            let (params, moments) = (&mut slices(&mut params), &mut slices(&mut moments));
            let d_output = values(seed, BATCH * 4);
            program.backward_and_update(params, moments, rule, &d_output).unwrap();
        }
        params
    };
    let in_pool = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(train)
    };
    assert_eq!(in_pool(1), in_pool(3));
    assert_ne!(in_pool(1), params(&lens));
}

#[test]
fn an_error_names_the_node() {
    let nothing = [node(Layer::Relu, &[0]), node(Layer::Gelu, &[0])];
    let later = [node(Layer::Add, &[0, 2]), node(Layer::Relu, &[1])];
    let twice = chain(&[conv(4, (0, 1)), conv(4, (0, 1))]);
    let not_flat = chain(&[Layer::Dense { features: 4, params: (0, 1) }]);
    let window = chain(&[Layer::AvgPool { window: (10, 1) }]);
    let unlike = [node(conv(4, (0, 1)), &[0]), node(Layer::Add, &[0, 1])];
    let joint = [node(Layer::Relu, &[0]), node(Layer::Gelu, &[0, 1])];
    assert!(check_graph(&[3], &chain(&[Layer::LogSoftmax])).is_err());
    for (nodes, expected) in [
        (&joint[..], "layer 1 cannot be compiled: it does not take 2 inputs"),
        (&nothing, "layer 0 cannot be compiled: nothing uses its output"),
        (&later, "layer 0 cannot be compiled: it comes before one of its inputs"),
        (&twice, "layer 1 cannot be compiled: parameter 0 is used twice"),
        (&not_flat, "layer 0 cannot be compiled: it does not take an input of [9, 8, 3]"),
        (&window, "layer 0 cannot be compiled: the sizes [0, 8, 3] contain a 0"),
        (&unlike, "layer 1 cannot be compiled: it does not take an input of [9, 8, 3]"),
        (&[], "layer 0 cannot be compiled: there are no layers"),
    ] {
        let error = check_graph(&SHAPE, nodes).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn slices_of_other_lengths_are_refused() {
    let (nodes, lens) = residual();
    let params = params(&lens);
    let mut program = GraphProgram::new(&SHAPE, &nodes).unwrap();
    let images = values(50, SHAPE.iter().product());
    let mut output = vec![0.0; BATCH * 4];
    let is_length = |result| matches!(result, Err(KernelError::Length { .. }));

    let few = &refs(&params)[1..];
    assert!(is_length(program.forward(few, TRAINING, &images, &mut output)));
    let params = &refs(&params)[..];
    assert!(is_length(program.forward(params, TRAINING, &images[1..], &mut output)));
    assert!(is_length(program.forward(params, TRAINING, &images, &mut output[1..])));
    let no_statistics = Mode::Evaluate { running: &[] };
    assert!(is_length(program.forward(params, no_statistics, &images, &mut output)));

    let mut params = self::params(&lens);
    let mut moments = params.clone();
    let (mut params, mut moments) = (slices(&mut params), slices(&mut moments));
    let error = program.gradients(&mut params, &mut moments, &output).unwrap_err();
    assert_eq!(error, KernelError::NothingKept);
    assert!(is_length(program.gradients(&mut params, &mut moments[1..], &output)));
    assert!(is_length(program.gradients(&mut params, &mut moments, &output[1..])));
}
