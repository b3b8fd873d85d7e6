//! Gradients and what they are applied to.

mod common;

use candle_core::{DType, Device, Tensor};
use linen::{Error, Gradients, Key, Module, Momentum, Optimizer, Params, Result, Scope};
use linen::{argmax, max_pool, relu, value_and_grad};

use common::device;

fn params(list: &[(&str, &[f64])]) -> Params {
    let tensor = |values: &[f64]| Tensor::new(values, &device()).unwrap().to_dtype(DType::F32);
    let list = list.iter().map(|(path, values)| ((*path).to_owned(), tensor(values).unwrap()));
    list.collect::<Vec<_>>().try_into().unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn only_a_scalar_is_differentiated() {
    let params = params(&[("a", &[1.0, 2.0])]);
    for (shape, is_scalar) in [(vec![2], false), (vec![1], false), (vec![], true)] {
        let loss = |params: &Params| {
            let squares = params.get("a").unwrap().sqr()?;
            let loss = if shape == [2] { squares } else { squares.sum_all()?.reshape(&*shape)? };
            Ok((loss, ()))
        };
        let result = value_and_grad(loss, &params);
        assert_eq!(result.is_ok(), is_scalar, "{shape:?}");
        if let Err(error) = result {
            let message = error.to_string();
            assert!(message.contains("a scalar: take the mean over the batch"), "{message}");
        }
    }
}

#[test]
fn gradients_are_computed_also_where_nothing_else_is_recorded() {
    struct Scaled;
    impl Module for Scaled {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            Ok((x * nn.param("a", linen::initializers::ones, 1, x.device())?)?)
        }
    }
    let x = Tensor::new(&[3f32], &device()).unwrap();
    let params = Scaled.init(Key::new(0), &x).unwrap();
    let loss = |params: &Params| Ok((Scaled.apply(params, &x)?.sum_all()?, ()));
    let (_, gradients) = linen::no_grad(|| value_and_grad(loss, &params)).unwrap();
    assert_eq!(values(gradients.get("a").unwrap()), [3.0]);
}

#[test]
fn the_gradient_of_what_the_loss_does_not_use_is_zero() {
    let params = params(&[("frozen", &[1.0, 2.0]), ("used", &[3.0])]);
    let loss = |params: &Params| Ok((params.get("used").unwrap().sqr()?.sum_all()?, ()));
    let (_, gradients) = value_and_grad(loss, &params).unwrap();
    assert_eq!(values(gradients.get("frozen").unwrap()), [0.0, 0.0]);
    assert_eq!(values(gradients.get("used").unwrap()), [6.0]);
}

#[test]
fn a_refused_gradient_leaves_no_half_made_step() {
    let params = params(&[("a", &[1.0]), ("b", &[2.0])]);
    let mut optimizer = Optimizer::new(&params, 0.1, Momentum::default()).unwrap();
    let good = || ("a".to_owned(), Tensor::new(&[1f32], &device()).unwrap());
    let other_type = Tensor::new(&[1u32], &device()).unwrap();
    let other_shape = Tensor::new(&[1f32, 1.0], &device()).unwrap();
    for (bad, message) in [
        (Some(other_type), "gradient: expected elements of type f32, found u32"),
        (Some(other_shape), "gradient: expected shape [1], that of \"b\", found [2]"),
        (None, "there is no gradient for parameter \"b\""),
    ] {
        let bad = bad.map(|tensor| ("b".to_owned(), tensor));
        let gradients = bad.into_iter().chain([good()]).collect::<Gradients>();
        let error = optimizer.apply_gradient(gradients).unwrap_err().to_string();
        assert!(error.starts_with(message), "{error}");
        assert_eq!(values(optimizer.target().get("a").unwrap()), [1.0]);
        assert_eq!(values(optimizer.moments()["momentum"].get("a").unwrap()), [0.0]);
        assert_eq!(optimizer.step_count(), 0);
    }
}

#[test]
fn an_initializer_that_returns_another_networks_variable_copies_it() {
    struct Pretrained<'a>(&'a Params);
    impl Module for Pretrained<'_> {
        fn call(&self, nn: &mut Scope, x: &Tensor) -> Result<Tensor> {
            let other = |_, _: &_, _: &_| Ok(self.0.get("a").unwrap().as_tensor().clone());
            Ok((x * nn.param("a", other, 2, x.device())?)?)
        }
    }
    let pretrained = params(&[("a", &[1.0, 2.0])]);
    let x = Tensor::ones(2, DType::F32, &device()).unwrap();
    let own = Pretrained(&pretrained).init(Key::new(0), &x).unwrap();
    own.get("a").unwrap().set(&x).unwrap();
    assert_eq!(values(pretrained.get("a").unwrap()), [1.0, 2.0]);
}

#[test]
fn a_kernel_of_one_dimension_has_no_inputs() {
    let draw = |shape: &[usize]| {
        linen::initializers::lecun_normal(Key::new(0), &shape.into(), &Device::Cpu)
    };
    assert!(draw(&[3, 2]).is_ok());
    for shape in [&[3][..], &[]] {
        assert!(matches!(draw(shape), Err(Error::Shape { .. })), "{shape:?}");
    }
}

#[test]
fn a_window_with_nan_has_the_maximum_nan() {
    for (dtype, first) in [DType::F32, DType::F64]
        .into_iter()
        .flat_map(|dtype| [1.0, f32::INFINITY].map(|first| (dtype, first)))
    {
        let x = Tensor::new(&[first, f32::NAN, 0.0, 0.5], &Device::Cpu).unwrap();
        let x = x.reshape((1, 2, 2, 1)).unwrap().to_dtype(dtype).unwrap();
        let pooled = max_pool(&x, (2, 2)).unwrap().to_dtype(DType::F32).unwrap();
        assert!(values(&pooled)[0].is_nan(), "{dtype:?}, {first}");
    }
}

#[test]
fn the_first_nan_is_the_largest_value() {
    let x = [[0f32, f32::NAN, 5.0], [1.0, 3.0, 3.0], [f32::INFINITY, 1.0, f32::NAN]];
    let x = Tensor::new(&x, &device()).unwrap();
    assert_eq!(argmax(&x).unwrap().to_vec1::<u32>().unwrap(), [1, 1, 2]);
    let x = Tensor::new(&[[f32::NAN, f32::NAN]], &device()).unwrap();
    assert_eq!(argmax(&x).unwrap().to_vec1::<u32>().unwrap(), [0]);
    // Where a network no longer gives numbers, relu keeps showing it.
    assert!(values(&relu(&x).unwrap()).iter().all(|value| value.is_nan()));
}
