//! The plans and the kernels, on the CPU: beside the CPU's own compiled step.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use libloading::{Library, Symbol};

use super::plan::{Addresses, Job, Launch, Plan};
use crate::kernels::{Layer, Program};
use crate::random::Key;

type Run = unsafe extern "C" fn(*const Job, i32, i32, bool);

/// `kernels.cu`, compiled for the CPU; its blocks run one at a time.
struct Emulator(Library);

impl Emulator {
    /// Nothing where there is no C++ compiler.
    fn get() -> Option<&'static Mutex<Self>> {
        static EMULATOR: OnceLock<Option<Mutex<Emulator>>> = OnceLock::new();
        EMULATOR.get_or_init(Self::compile).as_ref()
    }

    fn compile() -> Option<Mutex<Self>> {
        let folder = tempfile::tempdir().unwrap();
        let library = folder.path().join("emulate.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulate.cpp");
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O2", "-fPIC", "-shared", "-o"]).arg(&library).arg(source);
        match compiler.status() {
            Ok(status) => assert!(status.success(), "kernels.cu does not compile"),
            Err(_) => {
                let mut past_the_runner = std::io::stderr();
                writeln!(past_the_runner, "skipped: there is no C++ compiler").unwrap();
                return None;
            }
        }
        // SAFETY: the library has been compiled just now and runs nothing when loaded.
        Some(Mutex::new(Self(unsafe { Library::new(&library) }.unwrap())))
    }

    /// Blocks and threads take their turns in ascending order, or backwards.
    fn run(&self, launches: &[Launch], backwards: bool) {
        // SAFETY: `emulate.cpp` defines it so; the jobs name memory of the caller's that is large enough.
        unsafe {
            let launch: Symbol<Run> = self.0.get(b"launch").unwrap();
            for Launch { jobs, blocks } in launches {
                launch(jobs.as_ptr(), jobs.len() as i32, *blocks as i32, backwards);
            }
        }
    }
}

/// Numbers from -1 to 1.
fn numbers(key: Key, len: usize) -> Vec<f32> {
    let tensor = crate::random::uniform(key, len, -1.0, 1.0, &candle_core::Device::Cpu).unwrap();
    tensor.to_vec1().unwrap()
}

/// Makes a step with momentum on both sides and compares all that comes of it.
fn assert_same_step(shape: [usize; 4], layers: &[Layer], seed: i64) {
    let Some(emulator) = Emulator::get() else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    let plan = Plan::new(shape, layers).unwrap();
    let mut program = Program::new(shape, layers).unwrap();
    let classes = layers.iter().rev().find_map(|layer| match layer {
        Layer::Dense { features, .. } => Some(*features as u32),
        _ => None,
    });
    let key = Key::new(seed);
    let images = numbers(key, plan.batch * plan.image_len);
    let labels: Vec<u32> =
        (0..plan.batch).map(|i| key.fold_in(i as u32).words()[0] % classes.unwrap()).collect();
    let arrays = |salt: u32, scale: f32| -> Vec<Vec<f32>> {
        let lens = plan.param_lens.iter().zip(salt..);
        lens.map(|(&len, salt)| {
            numbers(key.fold_in(salt), len).into_iter().map(|value| value * scale).collect()
        })
        .collect()
    };
    let (mut params, mut momenta) = (arrays(100, 0.2), arrays(200, 0.1));
    let (mut gpu_params, mut gpu_momenta) = (params.clone(), momenta.clone());
    // What nothing has written yet is no number.
    let mut arena = vec![f32::NAN; plan.words];
    arena[plan.images as usize / 4..][..images.len()].copy_from_slice(&images);
    for (slot, label) in arena[plan.labels as usize / 4..].iter_mut().zip(&labels) {
        *slot = f32::from_bits(*label);
    }

    let (rate, beta) = (0.05, 0.9);
    let mut slices: Vec<&mut [f32]> = params.iter_mut().map(Vec::as_mut_slice).collect();
    let mut momentum_slices: Vec<&mut [f32]> = momenta.iter_mut().map(Vec::as_mut_slice).collect();
    let expected = program
        .train_step(&mut slices, &mut momentum_slices, &images, &labels, rate, beta)
        .unwrap();

    let addresses = |arrays: &mut [Vec<f32>]| -> Vec<u64> {
        arrays.iter_mut().map(|array| array.as_mut_ptr() as u64).collect()
    };
    let at = Addresses {
        arena: arena.as_mut_ptr() as u64,
        params: addresses(&mut gpu_params),
        momenta: addresses(&mut gpu_momenta),
    };
    let metrics = plan.metrics as usize / 4;
    emulator.run(&plan.evaluation(&at), false);
    let evaluated = arena[metrics];
    let start = (gpu_params.clone(), gpu_momenta.clone());
    emulator.run(&plan.training(&at, rate, beta), false);
    let (loss, accuracy) = (arena[metrics], arena[metrics + 1]);
    let forwards = (gpu_params.clone(), gpu_momenta.clone());

    // Once more, from the same state and into the same memory, in the opposite order.
    for (now, before) in [(&mut gpu_params, &start.0), (&mut gpu_momenta, &start.1)] {
        for (now, before) in now.iter_mut().zip(before) {
            now.copy_from_slice(before);
        }
    }
    emulator.run(&plan.training(&at, rate, beta), true);
    assert!(forwards == (gpu_params.clone(), gpu_momenta.clone()), "the order makes a difference");

    assert_eq!(loss, evaluated);
    assert!((loss - expected.loss).abs() <= 1e-5 * expected.loss, "{loss} {}", expected.loss);
    assert_eq!(accuracy, expected.correct as f32 / plan.batch as f32);
    for (what, found, expected) in
        [("parameter", &gpu_params, &params), ("momentum", &gpu_momenta, &momenta)]
    {
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let largest = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (at, (a, b)) in found.iter().zip(expected).enumerate() {
                assert!((a - b).abs() <= 1e-5 * largest, "{what} {index}[{at}]: {a}, not {b}");
            }
        }
    }
}

/// A chain whose parameters are numbered as they come.
fn chain(layers: &[Layer]) -> Vec<Layer> {
    let mut next = 0;
    let mut params = || {
        next += 2;
        (next - 1, next - 2) // bias before kernel, as in alphabetical order
    };
    let numbered = layers.iter().cloned().map(|layer| match layer {
        Layer::Conv { kernel, features, .. } => Layer::Conv { kernel, features, params: params() },
        Layer::Dense { features, .. } => Layer::Dense { features, params: params() },
        other => other,
    });
    numbered.collect()
}

fn conv(features: usize, kernel: (usize, usize)) -> Layer {
    Layer::Conv { kernel, features, params: (0, 0) }
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
fn a_step_of_the_tutorials_network_is_that_of_the_cpu() {
    assert_same_step([2, 28, 28, 1], &tutorial(), 1);
}

#[test]
fn steps_of_other_networks_are_those_of_the_cpu() {
    let networks: [([usize; 4], Vec<Layer>); 6] = [
        // Windows that leave a rest, even kernels, more features than a tile is wide.
        ([2, 11, 9, 3], vec![conv(70, (4, 2)), RELU, max(3, 2), conv(5, (2, 5)), RELU, max(2, 2)]),
        // No ReLU, no pooling, more rows than a low tile has.
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
            assert_same_step(shape, &chain(&layers), seed as i64);
        }
    }
}

#[test]
fn a_step_of_the_tutorial_takes_eleven_launches() {
    let plan = Plan::new([32, 28, 28, 1], &tutorial()).unwrap();
    let at = Addresses { arena: 4096, params: vec![1; 8], momenta: vec![1; 8] };
    let launches = plan.training(&at, 0.1, 0.9);
    assert_eq!(launches.len(), 11);
    assert_eq!(plan.evaluation(&at).len(), 7);
    // The products occupy most of the 132 multiprocessors of an H100.
    for launch in &launches {
        println!(
            "{:?} {}",
            launch.jobs.iter().map(|job| job.kind).collect::<Vec<_>>(),
            launch.blocks
        );
    }
}

#[test]
fn rust_and_cuda_agree_on_the_layout_of_a_job() {
    let Some(emulator) = Emulator::get() else {
        return;
    };
    let emulator = emulator.lock().unwrap();
    // SAFETY: `emulate.cpp` defines it so.
    let size = unsafe {
        let size: Symbol<unsafe extern "C" fn() -> usize> = emulator.0.get(b"job_size").unwrap();
        size()
    };
    assert_eq!(size, size_of::<Job>());
}

#[test]
fn what_a_gpu_cannot_count_is_refused() {
    let error = Plan::new([1 << 20, 28, 28, 1], &tutorial()).unwrap_err();
    assert!(error.contains("too large for a GPU"), "{error}");
    let wide = chain(&[conv(1, (1, 1)), max(9, 9), FLATTEN, dense(2), SOFTMAX]);
    let error = Plan::new([1, 28, 28, 1], &wide).unwrap_err();
    assert!(error.contains("81 pixels"), "{error}");
}
