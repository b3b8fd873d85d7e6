//! Invalid checkpoints with a correct checksum, so that the checks behind it are tested.

use candle_core::{DType, Tensor};

use super::*;
use crate::linen::Params;

fn run(rule: impl Into<Rule>) -> TrainingRun {
    let params = Params::try_from(vec![("bias".to_owned(), tensor(3))]).unwrap();
    let mut run =
        TrainingRun::new(Optimizer::new(&params, 0.1, rule).unwrap(), Key::new(0), 32);
    let metrics = Metrics { loss: 1.0, accuracy: 0.5 };
    run.history.push(metrics, metrics);
    run
}

/// A file with this header, these tensors and the matching checksum.
fn with_checksum(
    header: BTreeMap<String, String>,
    tensors: &[(impl ToString, Tensor)],
) -> Vec<u8> {
    let tensors = tensors
        .iter()
        .map(|(name, tensor)| (name.to_string(), tensor.clone()))
        .collect();
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
        let moments =
            rule.moment_names().iter().map(|name| (format!("{name}/bias"), tensor(3)));
        let tensors =
            moments.chain([("params/bias".to_owned(), tensor(3))]).collect::<Vec<_>>();
        let read = |header| {
            TrainingRun::from_bytes(&with_checksum(header, &tensors), &Device::Cpu)
        };
        let header = run(rule).header();
        assert_eq!(read(header.clone()).unwrap().state.optimizer.rule(), rule);
        // As written before there were statistics.
        let mut earlier = header.clone();
        earlier.insert("version".into(), EARLIER_VERSION.to_string());
        earlier.remove("dropout_key");
        let TrainState { batch_stats, dropout_key, .. } = read(earlier).unwrap().state;
        assert!(batch_stats.is_empty() && dropout_key.is_none());
        for name in header.keys() {
            let mut without = header.clone();
            without.remove(name);
            let problem = read(without).unwrap_err();
            let expected = if name == "format" {
                "not a checkpoint"
            } else {
                &format!("lacks {name:?}")
            };
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
        let header = run(Momentum::default()).header();
        let decoded =
            TrainingRun::from_bytes(&with_checksum(header, tensors), &Device::Cpu);
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
    let mut run = run(rule);
    let extreme = Metrics { loss: f32::MIN_POSITIVE, accuracy: f32::MAX };
    run.history.push(extreme, extreme);
    run.rng = Key::from_words([u32::MAX, 7]);
    run.state.dropout_key = Some(Key::from_words([0, u32::MAX]));
    run.state.batch_stats =
        Params::try_from(vec![("mean".to_owned(), tensor(2))]).unwrap();
    (run.epoch, run.batch_size) = (usize::MAX, usize::MAX);
    let read = TrainingRun::from_bytes(&run.to_bytes().unwrap(), &Device::Cpu).unwrap();
    assert_eq!(read.history, run.history);
    assert_eq!(read.state.optimizer.rule(), rule);
    assert_eq!(read.state.dropout_key, run.state.dropout_key);
    assert!(read.state.batch_stats.paths().eq(["mean"]));
    assert_eq!(
        (read.rng, read.epoch, read.batch_size),
        (run.rng, usize::MAX, usize::MAX)
    );
}
