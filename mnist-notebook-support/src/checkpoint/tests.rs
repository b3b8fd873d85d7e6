//! Invalid checkpoints with a correct checksum, so that the checks behind it are tested.

use candle_core::{DType, Tensor};

use super::*;
use crate::linen::Params;

fn state(rule: impl Into<Rule>) -> TrainState {
    let params = Params::try_from(vec![("bias".to_owned(), tensor(3))]).unwrap();
    let mut state = TrainState::new(Optimizer::new(&params, 0.1, rule).unwrap(), Key::new(0), 32);
    let metrics = Metrics { loss: 1.0, accuracy: 0.5 };
    state.history.push(EpochMetrics { train: metrics, test: metrics });
    state
}

/// A file with this header, these tensors and the matching checksum.
fn with_checksum(header: BTreeMap<String, String>, tensors: &[(impl ToString, Tensor)]) -> Vec<u8> {
    let tensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
    files::to_bytes(header, &tensors).unwrap()
}

fn tensor(len: usize) -> Tensor {
    Tensor::zeros(len, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn missing_and_invalid_entries_are_refused() {
    let rules: [Rule; 3] =
        [Momentum::default().into(), Adam::default().into(), AdamW::default().into()];
    for rule in rules {
        let moments = rule.moment_names().iter().map(|name| (format!("{name}/bias"), tensor(3)));
        let tensors = moments.chain([("params/bias".to_owned(), tensor(3))]).collect::<Vec<_>>();
        let read = |header| TrainState::from_bytes(&with_checksum(header, &tensors), &Device::Cpu);
        let header = state(rule).header();
        assert_eq!(read(header.clone()).unwrap().optimizer.rule(), rule);
        for name in header.keys() {
            let mut without = header.clone();
            without.remove(name);
            let problem = read(without).unwrap_err();
            let expected =
                if name == "format" { "not a checkpoint" } else { &format!("lacks {name:?}") };
            assert!(problem.to_string().contains(expected), "{name}: {problem}");
            for value in ["x", "-1", "1e400", "NaN", "1 2 3", "\0"] {
                let mut changed = header.clone();
                changed.insert(name.clone(), value.into());
                let decoded = read(changed);
                assert!(decoded.is_err(), "{name} = {value:?}: {decoded:?}");
            }
        }
    }
}

#[test]
fn mismatched_parameters_and_moments_are_refused() {
    for tensors in [
        &[] as &[_],
        &[("params/bias", tensor(3))],
        &[("momentum/bias", tensor(3))],
        &[("params/bias", tensor(3)), ("momentum/bias", tensor(4))],
        &[("params/bias", tensor(3)), ("momentum/kernel", tensor(3))],
    ] {
        let header = state(Momentum::default()).header();
        let decoded = TrainState::from_bytes(&with_checksum(header, tensors), &Device::Cpu);
        assert!(decoded.is_err(), "{tensors:?}");
    }
}

#[test]
fn extreme_numbers_round_trip() {
    let rule = Rule::from(AdamW {
        beta1: 1.0 - f64::EPSILON,
        beta2: f64::MIN_POSITIVE,
        epsilon: f32::MIN_POSITIVE.into(),
        weight_decay: f64::MAX,
    });
    let mut state = state(rule);
    let extreme = Metrics { loss: f32::MIN_POSITIVE, accuracy: f32::MAX };
    state.history.push(EpochMetrics { train: extreme, test: extreme });
    state.rng = Key::from_words([u32::MAX, 7]);
    (state.epoch, state.batch_size) = (usize::MAX, usize::MAX);
    let read = TrainState::from_bytes(&state.to_bytes().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(read.history, state.history);
    assert_eq!(read.optimizer.rule(), rule);
    assert_eq!((read.rng, read.epoch, read.batch_size), (state.rng, usize::MAX, usize::MAX));
}
