//! What a compiled step takes, and what it leaves to the network itself.

mod common;

use candle_core::{DType, Tensor};
use linen::{
    Key, Module, Momentum, Params, Result, Scope, avg_pool, compile, flatten, log_softmax, relu,
};

use common::device;

struct Net;

impl Module for Net {
    fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
        let x = avg_pool(&relu(&nn.conv(3, (3, 3), x)?)?, (2, 2))?;
        log_softmax(&nn.dense(4, &flatten(&x)?)?)
    }
}

const SHAPE: [usize; 4] = [5, 6, 6, 1];

fn params() -> Params {
    let images = Tensor::ones(&SHAPE, DType::F32, &device()).unwrap();
    Net.init(Key::new(0), &images).unwrap()
}

#[test]
fn a_detached_layer_is_not_compiled_wherever_the_plan_is_made() {
    struct Frozen;
    impl Module for Frozen {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let x = nn.dense(3, &flatten(x)?)?.detach();
            log_softmax(&nn.dense(4, &x)?)
        }
    }
    let images = Tensor::ones(&SHAPE, DType::F32, &device()).unwrap();
    let params = Frozen.init(Key::new(0), &images).unwrap();
    assert!(compile(&Frozen, &params, &SHAPE).unwrap().is_err());
    assert!(linen::no_grad(|| compile(&Frozen, &params, &SHAPE)).unwrap().is_err());
}

#[test]
fn only_batches_like_the_plans_are_taken() {
    if device().is_metal() {
        return; // nothing is compiled for Metal
    }
    let params = params();
    let mut step = compile(&Net, &params, &SHAPE).unwrap().unwrap();
    let mut optimizer = Momentum::new(&params, 0.1, 0.9).unwrap();
    let images = |dtype| Tensor::ones(&SHAPE, dtype, &device()).unwrap();
    let labels = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &device()).unwrap();
    let (image, label) = (images(DType::F32), labels(&[5], DType::U32));
    let transposed = image.transpose(1, 2).unwrap();
    for (image, label, is_taken) in [
        (&image, &label, true),
        (&image.narrow(0, 0, 4).unwrap(), &labels(&[4], DType::U32), false),
        (&images(DType::F64), &label, false),
        (&transposed, &label, false),
        (&image, &labels(&[4], DType::U32), false),
        (&image, &labels(&[5, 1], DType::U32), false),
        (&image, &labels(&[5], DType::I64), false),
    ] {
        let what = format!("{image:?} {label:?}");
        assert_eq!(step.eval_step(&params, image, label).unwrap().is_some(), is_taken, "{what}");
        let trained = step.train_step(&mut optimizer, image, label).unwrap();
        assert_eq!(trained.is_some(), is_taken, "{what}");
    }
}
