//! Times matrix products that stay in cache, one after the other on every thread. The result is a
//! lower bound for a training step that does all the multiplications in its definition.
//!
//! A request is a line on standard input, `gemm batch count`. The answer is a line
//! `= milliseconds`, the time of one step's multiplications on `batch` images, averaged over
//! `count` steps.

use std::error::Error;
use std::hint::black_box;
use std::io::BufRead;
use std::thread;
use std::time::{Duration, Instant};

use gemm::Parallelism;

/// Floating-point operations of one of the tutorial's training steps, per image.
const STEP_FLOP: f64 = 2.0 * 13.7e6;
/// Rows and columns of the matrices.
const SIZE: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    let threads = std::env::var("RAYON_NUM_THREADS")?.parse()?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let ["gemm", batch, count] = line.split(' ').collect::<Vec<_>>()[..] else {
            return Err(format!("expected `gemm batch count`, not `{line}`").into());
        };
        let (batch, count) = (batch.parse::<f64>()?, count.parse::<f64>()?);
        let time = time_products(count * batch * STEP_FLOP, threads);
        println!("= {}", time.as_secs_f64() * 1e3 / count);
    }
    Ok(())
}

/// The time that `flop` operations take.
fn time_products(flop: f64, threads: usize) -> Duration {
    let per_thread = flop / (2.0 * SIZE.pow(3) as f64) / threads as f64;
    let count = per_thread.ceil();
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let (a, b) = (vec![1.0; SIZE * SIZE], vec![1.0; SIZE * SIZE]);
                let mut c = vec![0.0; SIZE * SIZE];
                for _ in 0..count as usize {
                    product(&a, &b, &mut c);
                }
                black_box(c);
            });
        }
    });
    start.elapsed().mul_f64(per_thread / count)
}

/// `c = a · b` for square matrices in row-major order.
fn product(a: &[f32], b: &[f32], c: &mut [f32]) {
    assert!([a.len(), b.len(), c.len()] == [SIZE * SIZE; 3]);
    let row = SIZE as isize;
    // SAFETY: all three matrices have SIZE rows of SIZE values, and `c` is borrowed mutably.
    unsafe {
        gemm::gemm(
            SIZE,
            SIZE,
            SIZE,
            c.as_mut_ptr(),
            1,
            row,
            false,
            a.as_ptr(),
            1,
            row,
            b.as_ptr(),
            1,
            row,
            0.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
