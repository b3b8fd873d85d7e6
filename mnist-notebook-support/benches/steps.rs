//! Training and evaluation steps of the tutorial, batch size 32:
//! `cargo bench -p mnist-notebook-support`.

use criterion::{Criterion, criterion_group, criterion_main};
use mnist_notebook_support::prelude::*;

const BATCH: usize = 32;

criterion_group!(benches, steps);
criterion_main!(benches);

fn steps(criterion: &mut Criterion) {
    let images =
        Tensor::from_vec(values(BATCH * 784), (BATCH, 28, 28, 1), &Device::Cpu);
    let labels =
        Tensor::from_iter((0..BATCH as u32).map(|index| index % 10), &Device::Cpu);
    let batch = Batch::new(expect(images), expect(labels));
    let batch = expect(batch);
    let params = expect(get_initial_params(&Cnn, Key::new(0), &Device::Cpu));
    let mut optimizer = expect(create_optimizer(&params, 0.01, 0.9));
    let mut jit = Jit::new();
    criterion.bench_function("train_step compiled", |bencher| {
        bencher.iter(|| expect(jit.call(|| train_step(&Cnn, &mut optimizer, &batch))));
    });
    criterion.bench_function("train_step by autograd", |bencher| {
        bencher
            .iter(|| expect(disable_jit(|| train_step(&Cnn, &mut optimizer, &batch))));
    });
    criterion.bench_function("eval_step compiled", |bencher| {
        bencher.iter(|| expect(jit.call(|| eval_step(&Cnn, &params, &batch))));
    });
    criterion.bench_function("eval_step layer by layer", |bencher| {
        bencher.iter(|| expect(disable_jit(|| eval_step(&Cnn, &params, &batch))));
    });
}

/// Arbitrary numbers of both signs.
fn values(len: usize) -> Vec<f32> {
    (0..len).map(|index| (index * 7919 % 1009) as f32 / 1009.0 - 0.5).collect()
}

#[track_caller]
fn expect<T, E: std::fmt::Display>(result: std::result::Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
