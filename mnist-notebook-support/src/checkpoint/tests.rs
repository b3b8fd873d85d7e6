//! Invalid checkpoints with a correct checksum, so that the checks behind it are tested.

use candle_core::{DType, Tensor};

use super::*;
use crate::create_optimizer;
use crate::linen::Params;

fn state() -> TrainState {
    let tensor = Tensor::zeros(3, DType::F32, &Device::Cpu).unwrap();
    let params = Params::try_from(vec![("bias".to_owned(), tensor)]).unwrap();
    let mut state = TrainState::new(create_optimizer(&params, 0.1, 0.9).unwrap(), Key::new(0), 32);
    let metrics = Metrics { loss: 1.0, accuracy: 0.5 };
    state.history.push(EpochMetrics { train: metrics, test: metrics });
    state
}

/// A file with this header, these tensors and the matching checksum.
fn with_checksum(header: BTreeMap<String, String>, tensors: &[(&str, Tensor)]) -> Vec<u8> {
    let tensors =
        tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
    files::to_bytes(header, &tensors).unwrap()
}

fn tensor(len: usize) -> Tensor {
    Tensor::zeros(len, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn missing_and_invalid_entries_are_refused() {
    let tensors = [("momentum/bias", tensor(3)), ("params/bias", tensor(3))];
    assert!(
        TrainState::from_bytes(&with_checksum(state().header(), &tensors), &Device::Cpu).is_ok()
    );
    for name in state().header().into_keys() {
        let mut header = state().header();
        header.remove(&name);
        let problem =
            TrainState::from_bytes(&with_checksum(header, &tensors), &Device::Cpu).unwrap_err();
        let expected =
            if name == "format" { "not a checkpoint" } else { &format!("lacks {name:?}") };
        assert!(problem.to_string().contains(expected), "{name}: {problem}");
        for value in ["x", "-1", "1e400", "NaN", "1 2 3", "\0"] {
            let mut header = state().header();
            header.insert(name.clone(), value.into());
            let decoded = TrainState::from_bytes(&with_checksum(header, &tensors), &Device::Cpu);
            assert!(decoded.is_err(), "{name} = {value:?}: {decoded:?}");
        }
    }
}

#[test]
fn mismatched_parameters_and_momentum_are_refused() {
    for tensors in [
        &[] as &[_],
        &[("params/bias", tensor(3))],
        &[("momentum/bias", tensor(3))],
        &[("params/bias", tensor(3)), ("momentum/bias", tensor(4))],
        &[("params/bias", tensor(3)), ("momentum/kernel", tensor(3))],
    ] {
        let decoded =
            TrainState::from_bytes(&with_checksum(state().header(), tensors), &Device::Cpu);
        assert!(decoded.is_err(), "{tensors:?}");
    }
}

#[test]
fn extreme_numbers_round_trip() {
    let mut state = state();
    let extreme = Metrics { loss: f32::MIN_POSITIVE, accuracy: f32::MAX };
    state.history.push(EpochMetrics { train: extreme, test: extreme });
    state.rng = Key::from_words([u32::MAX, 7]);
    (state.epoch, state.batch_size) = (usize::MAX, usize::MAX);
    let read = TrainState::from_bytes(&state.to_bytes().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(read.history, state.history);
    assert_eq!((read.rng, read.epoch, read.batch_size), (state.rng, usize::MAX, usize::MAX));
}
