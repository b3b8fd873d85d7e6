//! Comparison with JAX, which computed the values in `golden/`.

use std::path::Path;

use jax_random::{Key, bits, normal, permutation, truncated_normal, uniform};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    seeds: Vec<SeedGolden>,
    draws: Vec<DrawsGolden>,
}

#[derive(Deserialize)]
struct SeedGolden {
    seed: i128,
    key: Option<[u32; 2]>,
}

#[derive(Deserialize)]
struct DrawsGolden {
    key: [u32; 2],
    split: [[u32; 2]; 2],
    split_5: Vec<[u32; 2]>,
    fold_in: Vec<FoldGolden>,
    bits: Vec<BitsGolden>,
    uniform: Vec<u32>,
    uniform_from_minus_2_5_to_3: Vec<u32>,
    normal: Vec<u32>,
    truncated_normal_from_minus_2_to_2: Vec<u32>,
    permutation: Vec<PermutationGolden>,
    permutation_of_60000: LongPermutationGolden,
}

#[derive(Deserialize)]
struct FoldGolden {
    data: u32,
    key: [u32; 2],
}

#[derive(Deserialize)]
struct BitsGolden {
    values: Vec<u32>,
}

#[derive(Deserialize)]
struct PermutationGolden {
    n: usize,
    order: Vec<u32>,
}

#[derive(Deserialize)]
struct LongPermutationGolden {
    first: Vec<u32>,
    last: Vec<u32>,
    sha256: String,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/random.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The recorded draws, each with its key.
fn draws() -> impl Iterator<Item = (Key, DrawsGolden)> {
    golden().draws.into_iter().map(|golden| (Key::from_words(golden.key), golden))
}

fn floats(bits: &[u32]) -> Vec<f32> {
    bits.iter().copied().map(f32::from_bits).collect()
}

fn assert_close(name: &str, found: impl Iterator<Item = f32>, expected: &[u32]) {
    let found: Vec<f32> = found.collect();
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (a, b)) in found.into_iter().zip(floats(expected)).enumerate() {
        assert!((a - b).abs() <= 1e-6 * b.abs(), "{name}[{i}]: {a} instead of {b}");
    }
}

#[test]
fn seeds_give_the_keys_of_jax() {
    for golden in golden().seeds {
        // JAX refuses seeds that do not fit an i64; here the type does not allow them.
        let found = i64::try_from(golden.seed).ok().map(|seed| Key::new(seed).words());
        assert_eq!(found, golden.key, "seed {}", golden.seed);
    }
}

#[test]
fn split_and_fold_in_give_the_keys_of_jax() {
    for (key, golden) in draws() {
        let (first, second) = key.split();
        assert_eq!([first.words(), second.words()], golden.split);
        let split: Vec<_> = key.split_n(5).into_iter().map(Key::words).collect();
        assert_eq!(split, golden.split_5);
        for fold in golden.fold_in {
            assert_eq!(key.fold_in(fold.data).words(), fold.key);
        }
    }
}

#[test]
fn bits_equal_those_of_jax() {
    for (key, golden) in draws() {
        for BitsGolden { values } in golden.bits {
            assert!(bits(key, values.len()).eq(values));
        }
    }
}

#[test]
fn uniform_numbers_equal_those_of_jax_exactly() {
    for (key, golden) in draws() {
        assert!(uniform(key, 100, 0.0, 1.0).eq(floats(&golden.uniform)));
        let expected = floats(&golden.uniform_from_minus_2_5_to_3);
        assert!(uniform(key, 100, -2.5, 3.0).eq(expected));
    }
}

#[test]
fn normal_numbers_equal_those_of_jax_to_the_last_bits() {
    for (key, golden) in draws() {
        assert_close("normal", normal(key, 100), &golden.normal);
        let found = truncated_normal(key, 100, -2.0, 2.0);
        assert_close("truncated normal", found, &golden.truncated_normal_from_minus_2_to_2);
    }
}

#[test]
fn permutations_equal_those_of_jax() {
    for (key, golden) in draws() {
        for PermutationGolden { n, order } in golden.permutation {
            assert_eq!(permutation(key, n), order);
        }
        let long = permutation(key, 60_000);
        assert_eq!(long[..20], golden.permutation_of_60000.first);
        assert_eq!(long[59_980..], golden.permutation_of_60000.last);
        let bytes: Vec<u8> = long.iter().flat_map(|i| i.to_le_bytes()).collect();
        let sum: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sum, golden.permutation_of_60000.sha256);
    }
}
