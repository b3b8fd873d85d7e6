//! Runs plans and kernels on the CPU, and compares them with the CPU's compiled step.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use libloading::{Library, Symbol};

use cpu_kernels::{Layer, Program, UpdateRule};

use super::plan::{Addresses, Epoch, Grid, Job, Launch, MomentumRule, Plan, ROW, read};
use super::tile::{Card, Tile};
use crate::error::Error;
use crate::metrics::Metrics;
use crate::random::Key;

type Run = unsafe extern "C" fn(*const Job, i32, i32, i32, bool);

const RULE: MomentumRule = MomentumRule { rate: 0.1, beta: 0.9 };

/// An H200.
const CARD: Card = Card { multiprocessors: 132, tensor_cores: true };
/// A GPU without TF32.
const OLD_CARD: Card = Card { tensor_cores: false, ..CARD };

/// The kernels compiled for the CPU; blocks run one at a time.
struct Emulator(Library);

impl Emulator {
    /// The kernels for a card, with a number of TF32 products; `None` without a C++ compiler.
    fn get(card: Card, products: usize) -> Option<&'static Mutex<Self>> {
        static EMULATORS: [OnceLock<Option<Mutex<Emulator>>>; 3] = [const { OnceLock::new() }; 3];
        let (index, macros): (usize, &[&str]) = match (card.tensor_cores, products) {
            (true, 3) => (0, &["-DTENSOR_CORES"]),
            (true, _) => (1, &["-DTENSOR_CORES", "-DPRODUCTS=1"]),
            (false, _) => (2, &[]),
        };
        EMULATORS[index].get_or_init(|| Self::compile(macros)).as_ref()
    }

    fn compile(macros: &[&str]) -> Option<Mutex<Self>> {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("emulate.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulate.cpp");
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-fPIC", "-shared"]).args(macros);
        match compiler.arg("-o").arg(&library).arg(source).status() {
            Ok(status) => assert!(status.success(), "kernels.cu does not compile"),
            Err(_) => {
                // Unlike `eprintln`, this is not captured by the test runner.
                writeln!(std::io::stderr(), "skipped: there is no C++ compiler").unwrap();
                return None;
            }
        }
        // SAFETY: the library was just compiled, and loading it runs no code.
        Some(Mutex::new(Self(unsafe { Library::new(&library) }.unwrap())))
    }

    /// Runs blocks and threads in ascending order, and what is not on the critical path at once; or
    /// all backwards, and that as late as allowed.
    fn run(&self, launches: &[Launch], backwards: bool) {
        // SAFETY: `emulate.cpp` defines this function; the jobs point to large enough memory of the
        // caller.
        let launch = |Grid { jobs, blocks, tile }: &Grid| unsafe {
            let launch: Symbol<Run> = self.0.get(b"launch").unwrap();
            launch(jobs.as_ptr(), jobs.len() as i32, *blocks as i32, *tile as i32, backwards);
        };
        let mut late = Vec::new();
        for Launch { grids, joins } in launches {
            let (main, others) = grids.split_first().unwrap();
            if *joins {
                late.drain(..).for_each(launch);
            }
            if !backwards {
                others.iter().for_each(launch);
            }
            launch(main);
            if backwards {
                late.extend(others);
            }
        }
        late.into_iter().for_each(launch);
    }

    /// An integer that `emulate.cpp` knows.
    fn constant(&self, name: &str) -> usize {
        // SAFETY: `emulate.cpp` defines these functions.
        unsafe { self.0.get::<unsafe extern "C" fn() -> usize>(name.as_bytes()).unwrap()() }
    }
}

/// Random numbers from -1 to 1.
fn random_values(key: Key, len: usize) -> Vec<f32> {
    let tensor = crate::random::uniform(key, len, -1.0, 1.0, &candle_core::Device::Cpu).unwrap();
    tensor.to_vec1().unwrap()
}

/// A plan with its memory and parameters, as on a GPU.
struct Planned {
    plan: Plan,
    arena: Vec<f32>,
    params: Vec<Vec<f32>>,
    momenta: Vec<Vec<f32>>,
}

impl Planned {
    fn new(
        shape: [usize; 4],
        layers: &[Layer],
        card: Card,
        key: Key,
        (images, labels): (&[f32], &[u32]),
    ) -> Self {
        let plan = Plan::new(shape, layers, card).unwrap();
        let arrays = |salt: u32, scale: f32| -> Vec<Vec<f32>> {
            let lens = plan.param_lens.iter().zip(salt..);
            lens.map(|(&len, salt)| {
                random_values(key.fold_in(salt), len)
                    .into_iter()
                    .map(|value| value * scale)
                    .collect()
            })
            .collect()
        };
        let (params, momenta) = (arrays(100, 0.2), arrays(200, 0.1));
        // NaN reveals reads of memory that was never written.
        let mut arena = vec![f32::NAN; plan.words];
        arena[plan.images as usize / 4..][..images.len()].copy_from_slice(images);
        for (slot, label) in arena[plan.labels as usize / 4..].iter_mut().zip(labels) {
            *slot = f32::from_bits(*label);
        }
        Self { plan, arena, params, momenta }
    }

    fn addresses(&mut self) -> Addresses {
        let of = |arrays: &mut [Vec<f32>]| -> Vec<u64> {
            arrays.iter_mut().map(|array| array.as_mut_ptr() as u64).collect()
        };
        Addresses {
            arena: self.arena.as_mut_ptr() as u64,
            params: of(&mut self.params),
            momenta: of(&mut self.momenta),
        }
    }

    /// Runs a training step; returns its row of metrics.
    fn train(&mut self, emulator: &Emulator, rule: MomentumRule, backwards: bool) -> [f32; ROW] {
        let at = self.addresses();
        let launches = self.plan.training(&at, rule);
        emulator.run(&launches, backwards);
        self.row()
    }

    fn evaluate(&mut self, emulator: &Emulator) -> [f32; ROW] {
        let at = self.addresses();
        let launches = self.plan.evaluation(&at);
        emulator.run(&launches, false);
        self.row()
    }

    fn row(&self) -> [f32; ROW] {
        self.arena[self.plan.metrics as usize / 4..][..ROW].try_into().unwrap()
    }

    fn state(&self) -> [Vec<Vec<f32>>; 2] {
        [self.params.clone(), self.momenta.clone()]
    }

    /// Restores an earlier state, in the same memory.
    fn restore(&mut self, [params, momenta]: &[Vec<Vec<f32>>; 2]) {
        for (now, before) in [(&mut self.params, params), (&mut self.momenta, momenta)] {
            for (now, before) in now.iter_mut().zip(before) {
                now.copy_from_slice(before);
            }
        }
    }
}

/// A training step with momentum on the CPU, and the same step to be run by the emulation.
struct Step {
    shape: [usize; 4],
    layers: Vec<Layer>,
    key: Key,
    images: Vec<f32>,
    labels: Vec<u32>,
    /// Parameters and momenta before it.
    start: [Vec<Vec<f32>>; 2],
    expected: Stepped,
}

/// What a step leaves.
#[derive(PartialEq)]
struct Stepped {
    metrics: Metrics,
    state: [Vec<Vec<f32>>; 2],
}

impl Step {
    const RULE: MomentumRule = MomentumRule { rate: 0.05, beta: 0.9 };

    /// With random momenta, or with none: then the new momenta are the gradients.
    fn new(shape: [usize; 4], layers: &[Layer], seed: i64, has_momenta: bool) -> Self {
        let classes = layers.iter().rev().find_map(|layer| match layer {
            Layer::Dense { features, .. } => Some(*features as u32),
            _ => None,
        });
        let (batch, key) = (shape[0], Key::new(seed));
        let images = random_values(key, shape.iter().product());
        let labels: Vec<u32> =
            (0..batch).map(|i| key.fold_in(i as u32).words()[0] % classes.unwrap()).collect();
        let gpu = Planned::new(shape, layers, CARD, key, (&images, &labels));
        let mut start = gpu.state();
        if !has_momenta {
            start[1].iter_mut().for_each(|momentum| momentum.fill(0.0));
        }
        let [mut params, mut momenta] = start.clone();
        let mut slices: Vec<&mut [f32]> = params.iter_mut().map(Vec::as_mut_slice).collect();
        let mut momentum_slices: Vec<&mut [f32]> =
            momenta.iter_mut().map(Vec::as_mut_slice).collect();
        let rule = UpdateRule::Momentum {
            learning_rate: Self::RULE.rate.into(),
            beta: Self::RULE.beta.into(),
            nesterov: false,
        };
        let found = Program::new(shape, layers)
            .unwrap()
            .train_step(&mut slices, &mut momentum_slices, &images, &labels, rule)
            .unwrap();
        let metrics = Metrics { loss: found.loss, accuracy: found.correct as f32 / batch as f32 };
        let expected = Stepped { metrics, state: [params, momenta] };
        Self { shape, layers: layers.to_vec(), key, images, labels, start, expected }
    }

    /// Runs the step with `tile` for each product that it fits, or with the plan's own choice. The
    /// order of blocks and threads makes no difference.
    fn run(&self, card: Card, products: usize, tile: Option<Tile>) -> Option<Stepped> {
        let emulator = Emulator::get(card, products)?.lock().unwrap();
        let data = (&*self.images, &*self.labels);
        let mut gpu = Planned::new(self.shape, &self.layers, card, self.key, data);
        for product in gpu.plan.products() {
            if let Some(tile) = tile.filter(|tile| gpu.plan.candidates(product).contains(tile)) {
                gpu.plan.choose(product, tile);
            }
        }
        gpu.restore(&self.start);
        let arena = gpu.arena.clone();
        let evaluated = read(&gpu.evaluate(&emulator)).unwrap();
        let metrics = read(&gpu.train(&emulator, Self::RULE, false)).unwrap();
        let state = gpu.state();
        // Again from the same state, in the same memory, but in the opposite order. Nothing is left
        // there for a job that runs before what it depends on.
        gpu.arena.copy_from_slice(&arena);
        gpu.restore(&self.start);
        gpu.train(&emulator, Self::RULE, true);
        assert!(state == gpu.state(), "the result depends on the order of blocks and threads");
        assert_eq!(metrics, evaluated);
        Some(Stepped { metrics, state })
    }

    /// The largest difference from the CPU's result, relative to the largest value of each array.
    fn error(&self, found: &Stepped) -> f32 {
        assert_eq!(found.metrics.accuracy, self.expected.metrics.accuracy);
        let loss = self.expected.metrics.loss;
        let mut most = (found.metrics.loss - loss).abs() / loss;
        let arrays = found.state.iter().flatten().zip(self.expected.state.iter().flatten());
        for (found, expected) in arrays {
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (a, b) in found.iter().zip(expected) {
                assert!(!a.is_nan(), "{a}, not {b}");
                most = most.max((a - b).abs() / largest);
            }
        }
        most
    }
}

/// Compares a step to the CPU's: metrics, parameters and momenta. With each of some tiles, with the
/// plan's own choice, and on an older card.
fn assert_same_step(shape: [usize; 4], layers: &[Layer], seed: i64, tiles: &[Tile]) {
    assert_same(&Step::new(shape, layers, seed, true), tiles);
}

fn assert_same(step: &Step, tiles: &[Tile]) {
    let tiles = tiles.iter().copied().map(Some).chain([None]);
    for (card, tile) in tiles.map(|tile| (CARD, tile)).chain([(OLD_CARD, None)]) {
        if let Some(found) = step.run(card, 3, tile) {
            let error = step.error(&found);
            assert!(error <= 1e-5, "{card:?}, {tile:?}: an error of {error}");
        }
    }
}

/// Numbers the parameters of a chain of layers.
fn chain(layers: &[Layer]) -> Vec<Layer> {
    let mut next = 0;
    let mut params = || {
        next += 2;
        (next - 1, next - 2) // bias before kernel: alphabetical order
    };
    layers.iter().filter_map(|layer| layer.try_map(|_| Some(params()))).collect()
}

fn conv(features: usize, kernel: (usize, usize)) -> Layer {
    Layer::Conv { kernel_size: kernel, features, params: (0, 0) }
}

fn dense(features: usize) -> Layer {
    Layer::Dense { features, params: (0, 0) }
}

const RELU: Layer = Layer::Relu;
const FLATTEN: Layer = Layer::Flatten;
const SOFTMAX: Layer = Layer::LogSoftmax;

fn average(height: usize, width: usize) -> Layer {
    Layer::AvgPool { window: (height, width) }
}

fn max(height: usize, width: usize) -> Layer {
    Layer::MaxPool { window: (height, width) }
}

fn tutorial() -> Vec<Layer> {
    chain(&[
        conv(32, (3, 3)),
        RELU,
        average(2, 2),
        conv(64, (3, 3)),
        RELU,
        average(2, 2),
        FLATTEN,
        dense(256),
        RELU,
        dense(10),
        SOFTMAX,
    ])
}

#[test]
fn a_step_of_the_tutorial_network_matches_the_cpu() {
    // The other networks try all tiles.
    assert_same_step([2, 28, 28, 1], &tutorial(), 1, &[Tile::T64x64, Tile::T128x64]);
}

#[test]
fn steps_of_other_networks_match_the_cpu() {
    let networks: [([usize; 4], Vec<Layer>); 6] = [
        // Windows that do not divide the image, even kernels, more features than a tile has.
        ([2, 11, 9, 3], vec![conv(70, (4, 2)), RELU, max(3, 2), conv(5, (2, 5)), RELU, max(2, 2)]),
        // No ReLU, no pooling, more images than a low tile has rows.
        ([40, 6, 5, 2], vec![conv(3, (1, 1)), conv(33, (3, 3)), average(2, 1)]),
        ([1, 7, 7, 65], vec![conv(8, (5, 5)), max(7, 7)]),
        ([5, 4, 4, 1], vec![]),
        ([70, 3, 3, 1], vec![conv(4, (3, 3)), RELU]),
        (
            [4, 8, 8, 1],
            vec![conv(2, (3, 3)), max(2, 2), conv(3, (3, 3)), RELU, average(1, 2), conv(4, (2, 2))],
        ),
    ];
    for (seed, (shape, convs)) in networks.into_iter().enumerate() {
        for denses in [vec![dense(7)], vec![dense(40), RELU, dense(33), dense(3), RELU]] {
            let layers = [convs.clone(), vec![FLATTEN], denses, vec![SOFTMAX]].concat();
            println!("{shape:?} {layers:?}");
            assert_same_step(shape, &chain(&layers), seed as i64, &Tile::ALL);
        }
    }
}

#[test]
fn a_step_on_a_large_batch_matches_the_cpu() {
    let layers = chain(&[conv(2, (3, 3)), RELU, max(2, 2), FLATTEN, dense(3), SOFTMAX]);
    assert_same(&Step::new([16_384, 4, 4, 1], &layers, 3, false), &[]);
}

#[test]
fn large_batches_of_the_tutorial_can_be_planned() {
    for batch in [1, 32, 100, 256, 2_048, 16_384] {
        let plan = Plan::new([batch, 28, 28, 1], &tutorial(), CARD).unwrap();
        println!("a step on {batch} images takes {} MB", plan.words * 4 / 1_000_000);
        // CUDA's limit on blocks.
        let at = Addresses { arena: 4096, params: vec![1; 8], momenta: vec![1; 8] };
        let launches = plan.training(&at, RULE);
        assert!(
            launches
                .iter()
                .flat_map(|launch| &launch.grids)
                .all(|grid| (1..1 << 31).contains(&grid.blocks))
        );
    }
}

#[test]
fn an_out_of_range_label_is_reported_and_changes_nothing() {
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let layers = chain(&[conv(2, (3, 3)), RELU, FLATTEN, dense(4), RELU, dense(3), SOFTMAX]);
    let (shape, key) = ([530, 4, 4, 1], Key::new(5));
    let (images, mut labels) = (random_values(key, 530 * 16), vec![2; 530]);
    (labels[270], labels[299]) = (3, u32::MAX);
    labels[270 + 256] = 4; // in the same thread as the first
    let mut gpu = Planned::new(shape, &layers, CARD, key, (&images, &labels));
    let start = gpu.state();
    for row in [gpu.evaluate(&emulator), gpu.train(&emulator, RULE, false)] {
        let error = read(&row).unwrap_err();
        let expected = matches!(error, Error::Label { label: 3, index: 270, num_classes: 3 });
        assert!(expected && row[0].is_nan(), "{error:?}");
    }
    assert!(start == gpu.state());

    // The next batch trains normally.
    let mut good = Planned::new(shape, &layers, CARD, key, (&images, &[2; 530]));
    gpu.arena.copy_from_slice(&good.arena);
    let rows = [&mut gpu, &mut good].map(|gpu| gpu.train(&emulator, RULE, false));
    assert_eq!(read(&rows[0]).unwrap(), read(&rows[1]).unwrap());
    assert!(gpu.state() == good.state() && start != gpu.state());
}

#[test]
fn an_out_of_range_label_changes_nothing_whatever_the_tiles() {
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let denses = [dense(5), RELU, dense(4), RELU, dense(3), SOFTMAX];
    let convs = [conv(2, (3, 3)), RELU, conv(3, (3, 3)), FLATTEN];
    let layers = chain(&[&convs[..], &denses].concat());
    let (shape, key) = ([3, 4, 4, 1], Key::new(6));
    let (images, labels) = (random_values(key, 3 * 16), [2, 7, 0]);
    let new = || Planned::new(shape, &layers, CARD, key, (&images, &labels));
    let products = new().plan.products();
    let tensor = Tile::T32x32;
    let choices = [(tensor, Tile::Scalar), (Tile::Scalar, tensor)];
    for (product, (tile, others)) in
        products.iter().flat_map(|product| choices.map(|choice| (*product, choice)))
    {
        for backwards in [false, true] {
            let mut gpu = new();
            for &other in &products {
                let tile = if other == product { tile } else { others };
                assert!(gpu.plan.candidates(other).contains(&tile));
                gpu.plan.choose(other, tile);
            }
            // The metrics of the step before, which had no such label.
            let metrics = gpu.plan.metrics as usize / 4;
            gpu.arena[metrics..][..ROW].fill(0.0);
            let start = gpu.state();
            assert!(read(&gpu.train(&emulator, RULE, backwards)).is_err());
            assert!(start == gpu.state(), "{product:?} with {tile:?}, others with {others:?}");
        }
    }
}

#[test]
fn a_pixel_that_is_not_a_number_survives_pooling() {
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let key = Key::new(8);
    for place in [0, 1, 4, 5] {
        let mut images = random_values(key, 2 * 16);
        images[place] = f32::NAN; // of the first window, alone
        for (choice, pooling) in [max(2, 2), average(2, 2)].iter().cycle().take(8).enumerate() {
            let card = if choice & 2 == 0 { CARD } else { OLD_CARD };
            let mut layers = vec![conv(3, (1, 1)), pooling.clone(), FLATTEN, dense(2), SOFTMAX];
            if choice & 4 == 0 {
                layers.insert(1, RELU);
            }
            let data = (&*images, &[0, 1][..]);
            let mut gpu = Planned::new([2, 4, 4, 1], &chain(&layers), card, key, data);
            let loss = gpu.evaluate(&emulator)[0];
            assert!(loss.is_nan(), "{place}, {layers:?}, {card:?}: {loss}");
        }
    }
}

#[test]
fn an_epoch_without_the_host_equals_its_steps() {
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let convs = [conv(3, (3, 3)), RELU, max(2, 2), FLATTEN, dense(5), RELU, dense(3), SOFTMAX];
    for layers in [chain(&convs), chain(&[FLATTEN, dense(5), RELU, dense(3), SOFTMAX])] {
        let (batch, image_len, key) = (2, 5 * 4, Key::new(9));
        let images = random_values(key, 9 * image_len);
        let labels = [0u32, 1, 2, 2, 1, 0, 0, 2, 7];
        // The third batch has an out-of-range label: it changes nothing.
        let order = [4u32, 1, 0, 7, 8, 3, 6, 4];
        let new = || {
            let nothing = (&images[..batch * image_len], &labels[..batch]);
            let mut planned = Planned::new([batch, 5, 4, 1], &layers, CARD, key, nothing);
            planned.arena[planned.plan.images as usize / 4..][..batch * image_len].fill(f32::NAN);
            planned
        };

        let mut by_steps = new();
        let rows = order.as_chunks::<2>().0.iter().map(|indices| {
            for (place, index) in indices.iter().map(|index| *index as usize).enumerate() {
                let at = by_steps.plan.images as usize / 4 + place * image_len;
                let image = &images[index * image_len..][..image_len];
                by_steps.arena[at..][..image_len].copy_from_slice(image);
                let at = by_steps.plan.labels as usize / 4 + place;
                by_steps.arena[at] = f32::from_bits(labels[index]);
            }
            by_steps.train(&emulator, RULE, false)
        });
        let expected: Vec<_> =
            rows.map(|row| read(&row).map_err(|error| error.to_string())).collect();
        assert!(expected[2].is_err() && expected.iter().flatten().count() == 3);

        for backwards in [false, true] {
            let mut whole = new();
            let mut rows = vec![[0f32; ROW]; order.len() / batch];
            let at = whole.addresses();
            let epoch = Epoch {
                images: images.as_ptr() as u64,
                labels: labels.as_ptr() as u64,
                order: order.as_ptr() as u64,
                rows: rows.as_mut_ptr() as u64,
                step: 0,
                steps: rows.len() as i32,
            };
            // SAFETY: the plan has memory for an epoch there, at an address divisible by 128.
            unsafe { ((at.arena + whole.plan.epoch) as *mut Epoch).write_unaligned(epoch) };
            let (first, step) = whole.plan.epoch_step(&at, RULE);
            emulator.run(&[first], backwards);
            for _ in 0..rows.len() {
                emulator.run(&step, backwards);
            }
            let found: Vec<_> =
                rows.iter().map(|row| read(row).map_err(|error| error.to_string())).collect();
            assert_eq!(found, expected);
            assert!(whole.state() == by_steps.state());
        }
    }
}

#[test]
fn a_step_of_the_tutorial_takes_eleven_launches() {
    let plan = Plan::new([32, 28, 28, 1], &tutorial(), CARD).unwrap();
    let at = Addresses { arena: 4096, params: vec![1; 8], momenta: vec![1; 8] };
    let launches = plan.training(&at, RULE);
    assert_eq!(launches.len(), 11);
    assert_eq!(plan.evaluation(&at).len(), 7);
    assert_eq!(plan.epoch_step(&at, RULE).1.len(), 11);
    // To be compared with the 132 multiprocessors of an H100.
    for launch in &launches {
        for Grid { tile, jobs, blocks } in &launch.grids {
            let kinds: Vec<_> = jobs.iter().map(|job| job.kind).collect();
            println!("{kinds:?}: {blocks} blocks of {tile:?}");
        }
        println!();
    }
}

#[test]
fn rust_and_cuda_agree_on_jobs_and_tiles() {
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    assert_eq!(emulator.constant("job_size"), size_of::<Job>());
    assert_eq!(emulator.constant("epoch_size"), size_of::<Epoch>());
    assert_eq!(emulator.constant("row_size"), size_of::<[f32; ROW]>());
    assert_eq!(emulator.constant("tiles"), Tile::ALL.len());
    for (index, tile) in Tile::ALL.into_iter().enumerate() {
        // SAFETY: `emulate.cpp` defines this function.
        let shared = unsafe {
            let shared: Symbol<unsafe extern "C" fn(i32) -> i32> =
                emulator.0.get(b"shared_bytes").unwrap();
            shared(index as i32)
        };
        assert_eq!((tile as usize, tile.kernel().2), (index, shared as usize), "{tile:?}");
    }
}

#[test]
fn a_step_on_a_small_card_matches_the_cpu() {
    let step = Step::new([3, 12, 12, 1], &tutorial(), 7, true);
    // Other numbers of parts.
    let card = Card { multiprocessors: 2, ..CARD };
    let Some(found) = step.run(card, 3, None) else { return };
    assert!(step.error(&found) <= 1e-5, "an error of {}", step.error(&found));
}

#[test]
fn one_product_has_the_precision_of_tf32() {
    let step = Step::new([4, 28, 28, 1], &tutorial(), 1, true);
    let Some(found) = step.run(CARD, 1, Some(Tile::T64x64)) else { return };
    let error = step.error(&found);
    // These logits are large, so that a small error in them changes the probabilities by percents.
    assert!((1e-4..0.1).contains(&error), "an error of {error}");
}

#[test]
fn fragments_have_the_layout_of_the_instruction() {
    type Multiply = unsafe extern "C" fn(*const f32, *const f32, *mut f32);
    let Some(emulator) = Emulator::get(CARD, 3) else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let a: Vec<f32> = (0..16 * 8).map(|i| (i * 7 % 31) as f32).collect();
    let b: Vec<f32> = (0..8 * 8).map(|i| (i * 5 % 23) as f32).collect();
    let mut found = vec![0.0; 16 * 8];
    // SAFETY: `emulate.cpp` defines this function, for arrays of these sizes.
    unsafe {
        let multiply: Symbol<Multiply> = emulator.0.get(b"multiply_fragments").unwrap();
        multiply(a.as_ptr(), b.as_ptr(), found.as_mut_ptr());
    }
    for (i, j) in (0..16).flat_map(|i| (0..8).map(move |j| (i, j))) {
        let expected: f32 = (0..8).map(|k| a[i * 8 + k] * b[k * 8 + j]).sum();
        assert_eq!(found[i * 8 + j], expected, "({i}, {j})");
    }
}

#[test]
fn what_is_too_large_for_places_runs_one_multiplication_at_a_time() {
    for (shape, kernel, fits) in [
        ([1, 5, 3, 1], (3, 3), true),
        ([1, 8193, 1, 1], (3, 3), false),
        ([1, 1, 8193, 1], (3, 3), false),
        ([1, 5, 3, 1], (32_768, 1), false),
        ([1, 5, 3, 1], (1, 8193), false),
    ] {
        let layers = chain(&[conv(1, kernel), FLATTEN, dense(2), SOFTMAX]);
        let plan = Plan::new(shape, &layers, CARD).unwrap();
        let tiles = plan.candidates(plan.products()[0]);
        assert_eq!(tiles != [Tile::Scalar], fits, "{shape:?}, {kernel:?}: {tiles:?}");
    }
}

#[test]
fn too_large_plans_are_refused() {
    let error = Plan::new([1 << 20, 28, 28, 1], &tutorial(), CARD).unwrap_err();
    assert!(error.contains("too large for a GPU"), "{error}");
    let wide = chain(&[conv(1, (1, 1)), max(9, 9), FLATTEN, dense(2), SOFTMAX]);
    let error = Plan::new([1, 28, 28, 1], &wide, CARD).unwrap_err();
    assert!(error.contains("81 pixels"), "{error}");
    let average = |height, width| {
        let layers = chain(&[conv(1, (1, 1)), average(height, width), FLATTEN, dense(2), SOFTMAX]);
        Plan::new([1, 28, 28, 1], &layers, CARD)
    };
    assert!(average(2, 4).is_ok());
    let error = average(3, 3).unwrap_err();
    assert!(error.contains("9 pixels, and at most 8 are supported"), "{error}");
}
