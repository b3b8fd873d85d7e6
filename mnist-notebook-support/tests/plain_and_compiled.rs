//! The plain and the compiled steps are one function: they accept the same, compute the same, and
//! refuse the same with the same error, whatever the network, the parameters and the batch.
//!
//! To look longer than the usual number of cases: `PROPTEST_CASES=100000`.

use linen::Rule;
use mnist_notebook_support::prelude::*;
use mnist_notebook_support::random::{bits, normal, uniform};
use proptest::prelude::*;

const CPU: &Device = &Device::Cpu;

/// A network put together at random.
#[derive(Debug, Clone)]
struct Net(Vec<Step>);

#[derive(Debug, Clone, Copy)]
enum Step {
    Conv(usize, (usize, usize)),
    Dense(usize),
    Relu,
    AvgPool((usize, usize)),
    MaxPool((usize, usize)),
    Flatten,
    LogSoftmax,
    /// Not a layer.
    Double,
    /// Two branches.
    Residual,
    /// Two branches, joined by a layer.
    Joined,
    /// A convolution with strides.
    Strided(usize, (usize, usize)),
    /// No gradient passes.
    Detach,
    /// A layer whose result is not used.
    Unused,
    /// A ReLU for batches of one size.
    ReluIf(usize),
    /// Only batches of one size can be reshaped like this.
    FixedBatch(usize),
}

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for &step in &self.0 {
            x = match step {
                Step::Conv(features, kernel_size) => {
                    nn.conv(features, kernel_size, &x)?
                }
                Step::Dense(features) => nn.dense(features, &x)?,
                Step::Relu => relu(&x)?,
                Step::AvgPool(window) => avg_pool(&x, window)?,
                Step::MaxPool(window) => max_pool(&x, window)?,
                Step::Flatten => flatten(&x)?,
                Step::LogSoftmax => log_softmax(&x)?,
                Step::Double => (x * 2.0)?,
                Step::Residual => (relu(&x)? + x)?,
                Step::Joined => add(&relu(&x)?, &x)?,
                Step::Strided(features, strides) => {
                    nn.conv_with(&Conv { strides, ..Conv::new(features, (3, 2)) }, &x)?
                }
                Step::Detach => x.detach(),
                Step::Unused => {
                    nn.conv(2, (3, 3), &x)?;
                    x
                }
                Step::ReluIf(batch) if x.dims()[0] == batch => relu(&x)?,
                Step::ReluIf(_) => x,
                Step::FixedBatch(batch) => {
                    x.reshape((batch, x.elem_count() / batch))?
                }
            };
        }
        Ok(x)
    }
}

fn network() -> impl Strategy<Value = Net> {
    let window = || (1..=3usize, 1..=3usize);
    let before = prop_oneof![
        4 => (1..=5usize, (1..=5usize, 1..=5usize)).prop_map(|(f, k)| Step::Conv(f, k)),
        4 => Just(Step::Relu),
        2 => window().prop_map(Step::AvgPool),
        2 => window().prop_map(Step::MaxPool),
        1 => Just(Step::Double),
        1 => Just(Step::Residual),
        1 => Just(Step::Joined),
        1 => (1..=5usize, (1..=2usize, 1..=2usize)).prop_map(|(f, s)| Step::Strided(f, s)),
        1 => Just(Step::Detach),
        1 => Just(Step::Unused),
        1 => (1..=4usize).prop_map(Step::ReluIf),
    ];
    let flat = prop_oneof![8 => Just(Step::Flatten), 1 => (1..=4usize).prop_map(Step::FixedBatch)];
    let after = prop_oneof![
        3 => (1..=9usize).prop_map(Step::Dense),
        3 => Just(Step::Relu),
        1 => (1..=4usize).prop_map(Step::ReluIf),
    ];
    let last = prop_oneof![9 => Just(Some(Step::LogSoftmax)), 1 => Just(None)];
    let parts = (
        prop::collection::vec(before, 0..6),
        prop_oneof![9 => flat.prop_map(Some), 1 => Just(None)],
        prop::collection::vec(after, 0..4),
        (2..=10usize).prop_map(Step::Dense),
        last,
    );
    parts.prop_map(|(before, flat, after, output, last)| {
        Net([
            before,
            flat.into_iter().collect(),
            after,
            vec![output],
            Vec::from_iter(last),
        ]
        .concat())
    })
}

/// The parameters that the steps get, beside those that the network was compiled with.
#[derive(Debug, Clone, Copy)]
enum Given {
    Same,
    /// More than the network uses, before or after the others in the alphabet.
    More(&'static str),
    /// All but one.
    Fewer(usize),
    /// One with its first two dimensions exchanged: as many values in another shape.
    Turned(usize),
    F64,
    /// One holds NaN.
    Nan(usize),
}

/// The batch that the steps get.
#[derive(Debug, Clone, Copy)]
enum Fed {
    Good,
    Smaller,
    Larger,
    Taller,
    F64,
    /// Not contiguous.
    Transposed,
    WrongLabel,
    Nan,
    /// The images are a parameter of the network.
    Parameter(usize),
}

fn given() -> impl Strategy<Value = Given> {
    let any = 0..8usize;
    prop_oneof![
        6 => Just(Given::Same),
        1 => Just(Given::More("Aux/w")),
        1 => Just(Given::More("Zeta/w")),
        1 => any.clone().prop_map(Given::Fewer),
        1 => any.clone().prop_map(Given::Turned),
        1 => Just(Given::F64),
        1 => any.prop_map(Given::Nan),
    ]
}

fn fed() -> impl Strategy<Value = Fed> {
    prop_oneof![
        8 => Just(Fed::Good),
        1 => Just(Fed::Smaller),
        1 => Just(Fed::Larger),
        1 => Just(Fed::Taller),
        1 => Just(Fed::F64),
        1 => Just(Fed::Transposed),
        1 => Just(Fed::WrongLabel),
        1 => Just(Fed::Nan),
        1 => (0..8usize).prop_map(Fed::Parameter),
    ]
}

/// With every kind of rule.
fn rule() -> impl Strategy<Value = Rule> {
    let adam_w = AdamW { weight_decay: 0.1, ..AdamW::default() };
    prop_oneof![
        any::<bool>().prop_map(|nesterov| Momentum { beta: 0.9, nesterov }.into()),
        Just(Adam::default().into()),
        Just(adam_w.into()),
    ]
}

fn change(params: &Params, given: Given) -> Params {
    let mut list = params
        .iter()
        .map(|(path, var)| (path.to_owned(), var.as_tensor().copy().unwrap()))
        .collect::<Vec<_>>();
    let len = list.len();
    match given {
        Given::Same => {}
        Given::More(path) => {
            list.push((path.into(), Tensor::ones(3, DType::F32, CPU).unwrap()))
        }
        Given::Fewer(i) => drop(list.remove(i % len)),
        Given::Turned(i) => {
            let tensor = &mut list[i % len].1;
            if let &[a, b, ..] = tensor.dims() {
                let shape = [&[b, a], &tensor.dims()[2..]].concat();
                *tensor = tensor.reshape(shape).unwrap();
            }
        }
        Given::F64 => return params.to_dtype(DType::F64).unwrap(),
        Given::Nan(i) => {
            let tensor = &mut list[i % len].1;
            *tensor = (tensor.clone() * f64::NAN).unwrap();
        }
    }
    list.try_into().unwrap()
}

fn batch(
    shape: [usize; 4],
    params: &Params,
    num_classes: usize,
    fed: Fed,
    key: Key,
) -> Batch {
    let [mut examples, mut height, width, channels] = shape;
    match fed {
        Fed::Smaller => examples = (examples - 1).max(1),
        Fed::Larger => examples += 1,
        Fed::Taller => height += 1,
        _ => {}
    }
    let (image_key, label_key) = key.split();
    let shape = (examples, height, width, channels);
    let mut image = normal(image_key, shape, CPU).unwrap();
    match fed {
        Fed::F64 => image = image.to_dtype(DType::F64).unwrap(),
        Fed::Transposed => {
            image =
                normal(image_key, (examples, width, height, channels), CPU).unwrap();
            image = image.transpose(1, 2).unwrap();
        }
        Fed::Nan => image = (image * f64::NAN).unwrap(),
        Fed::Parameter(i) => {
            let of_images = params.iter().filter(|(_, var)| var.rank() == 4);
            let all =
                of_images.map(|(_, var)| var.as_tensor().clone()).collect::<Vec<_>>();
            if !all.is_empty() {
                image = all[i % all.len()].clone();
                examples = image.dims()[0];
            }
        }
        _ => {}
    }
    let labels = bits(label_key, examples, CPU).unwrap().to_vec1::<u32>().unwrap();
    let mut labels =
        labels.iter().map(|bits| bits % num_classes as u32).collect::<Vec<_>>();
    if let Fed::WrongLabel = fed {
        labels[examples / 2] = num_classes as u32;
    }
    Dataset::new(image, Tensor::from_vec(labels, examples, CPU).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Whether two results are the same but for rounding; after a NaN anything goes.
fn agree(what: &str, plain: &[f64], compiled: &[f64]) -> Result<(), TestCaseError> {
    prop_assert_eq!(plain.len(), compiled.len(), "{}", what);
    let is_sound = |values: &[f64]| values.iter().all(|value| value.is_finite());
    prop_assert_eq!(
        is_sound(plain),
        is_sound(compiled),
        "{}: {:?} {:?}",
        what,
        plain,
        compiled
    );
    if is_sound(plain) {
        let largest =
            plain.iter().fold(1e-3f64, |largest, value| largest.max(value.abs()));
        let difference =
            plain.iter().zip(compiled).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        prop_assert!(
            difference <= 1e-4 * largest,
            "{} differs by {}: {:?} {:?}",
            what,
            difference,
            plain,
            compiled
        );
    }
    Ok(())
}

/// Compares two results of the same function; if both are good, hands them to `compare`.
fn same<T>(
    what: &str,
    plain: Result<T>,
    compiled: Result<T>,
    compare: impl FnOnce(T, T) -> Result<(), TestCaseError>,
) -> Result<(), TestCaseError> {
    match (plain, compiled) {
        (Ok(plain), Ok(compiled)) => compare(plain, compiled),
        (Err(plain), Err(compiled)) => {
            // Numbers in them may be rounded differently.
            let text = |error: Error| {
                error.to_string().replace(|c: char| c.is_ascii_digit(), "")
            };
            prop_assert_eq!(text(plain), text(compiled), "{}", what);
            Ok(())
        }
        (plain, compiled) => {
            let (plain, compiled) = (plain.err(), compiled.err());
            prop_assert!(false, "{}: plain {:?}, compiled {:?}", what, plain, compiled);
            Ok(())
        }
    }
}

fn all_values(params: &Params) -> Vec<f64> {
    params.iter().flat_map(|(_, var)| values(var)).collect()
}

fn check(
    net: &Net,
    shape: [usize; 4],
    given: Given,
    fed: Fed,
    rule: Rule,
    seed: i64,
) -> Result<(), TestCaseError> {
    let (init_key, data_key) = Key::new(seed).split();
    let sample = Tensor::zeros(shape.to_vec(), DType::F32, CPU).unwrap();
    // Networks that cannot be made are not the subject.
    let Ok(own) = net.init(init_key, &sample) else { return Ok(()) };
    let mut jit = Jit::new();
    let num_classes =
        net.apply(&own, &sample).unwrap().dims().last().copied().unwrap_or(1);
    let params = change(&own, given);
    let (mut plain, mut compiled) =
        (in_motion(&params, rule), in_motion(&params, rule));
    for round in 0..2 {
        let key = data_key.fold_in(round);
        let for_plain = batch(shape, plain.target(), num_classes, fed, key);
        let for_compiled = batch(shape, compiled.target(), num_classes, fed, key);

        let expected = no_grad_logits(net, &plain, &for_plain);
        let found = jit.call(|| no_grad_logits(net, &compiled, &for_compiled));
        same("predict", expected, found, |plain, compiled| {
            agree("predictions", &values(&plain), &values(&compiled))
        })?;

        let metrics = |plain: BatchMetrics, compiled: BatchMetrics| {
            agree("loss", &values(&plain.loss), &values(&compiled.loss))
        };
        let expected = disable_jit(|| eval_step(net, plain.target(), &for_plain));
        let found = jit.call(|| eval_step(net, compiled.target(), &for_compiled));
        same("eval_step", expected, found, metrics)?;

        let expected = disable_jit(|| train_step(net, &mut plain, &for_plain));
        let found = jit.call(|| train_step(net, &mut compiled, &for_compiled));
        same("train_step", expected, found, metrics)?;
        agree(
            "parameters",
            &all_values(plain.target()),
            &all_values(compiled.target()),
        )?;
        for (name, moment) in plain.moments() {
            agree(name, &all_values(moment), &all_values(&compiled.moments()[name]))?;
        }
        prop_assert_eq!(plain.step_count(), compiled.step_count());
    }
    Ok(())
}

/// An optimizer in the midst of training: its moments are not zero. They are positive, as a second
/// moment is.
fn in_motion(params: &Params, rule: Rule) -> Optimizer {
    let moment = || {
        let moment = params.iter().map(|(path, var)| {
            let values = uniform(Key::new(7), var.shape(), 0.01, 0.02, CPU).unwrap();
            (path.to_owned(), values.to_dtype(var.dtype()).unwrap())
        });
        moment.collect::<Vec<_>>().try_into().unwrap()
    };
    let moments = rule.moment_names().iter().map(|&name| (name, moment())).collect();
    Optimizer::from_parts(params.copy().unwrap(), 0.05, rule, 7, moments).unwrap()
}

fn no_grad_logits(net: &Net, optimizer: &Optimizer, batch: &Batch) -> Result<Tensor> {
    linen::no_grad(|| net.apply(optimizer.target(), batch.image()))
}

/// Too rare to be found by chance.
#[test]
fn an_image_that_is_a_parameter_is_no_deadlock() {
    let layers =
        [Step::Conv(1, (2, 3)), Step::Flatten, Step::Dense(2), Step::LogSoftmax];
    let (net, shape) = (Net(layers.to_vec()), [2, 3, 1, 1]);
    let rule = Momentum::default().into();
    check(&net, shape, Given::Same, Fed::Parameter(0), rule, 0).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plain_and_compiled_steps_are_one_function(
        net in network(),
        shape in (1..=4usize, 1..=9usize, 1..=9usize, 1..=3usize),
        given in given(),
        fed in fed(),
        rule in rule(),
        seed in 0..1000i64,
    ) {
        check(&net, [shape.0, shape.1, shape.2, shape.3], given, fed, rule, seed)?;
    }
}
