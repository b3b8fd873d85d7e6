//! Traces the layers that one evaluation of a module runs.
//!
//! A module is ordinary Rust code, so its structure can only be seen by running it. During a
//! [`trace`], every layer function of this crate records its input and output. This is how the
//! [table of layers](crate::tabulate()), the
//! [intermediate results](crate::capture_intermediates) and the plans of a [`Jit`](crate::Jit)
//! come about, as `jax.jit` works from traced operations.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{Tensor, TensorId};
pub use cpu_kernels::Layer;

use crate::error::Result;

thread_local! {
    /// The layers of the running trace, if there is one.
    static TRACE: RefCell<Option<Vec<TracedOp>>> = const { RefCell::new(None) };
}

/// One layer evaluation.
#[derive(Debug, Clone)]
pub struct TracedOp {
    /// The layer; its parameters are those below its path.
    pub layer: Layer<String>,
    /// Its inputs: one, but for layers that join branches.
    pub inputs: Vec<TensorId>,
    /// Its output.
    pub output: Tensor,
}

/// The layer's path, or the name of its function.
pub fn layer_name(layer: &Layer<String>) -> &str {
    match path(layer) {
        Ok(name) | Err(name) => name,
    }
}

/// A name for each evaluated layer, different from all others: its path, or its function numbered
/// from zero, such as `relu_1`.
pub fn layer_names(ops: &[TracedOp]) -> Vec<String> {
    let mut counts = HashMap::new();
    let name = |op: &TracedOp| match path(&op.layer) {
        Ok(path) => path.to_owned(),
        Err(function) => {
            let count = counts.entry(function).or_insert(0);
            *count += 1;
            format!("{function}_{}", *count - 1)
        }
    };
    ops.iter().map(name).collect()
}

/// The layer's path or, if it has none, the name of its function.
fn path(layer: &Layer<String>) -> Result<&str, &'static str> {
    Err(match layer {
        Layer::Conv { params: path, .. }
        | Layer::GeneralConv { params: path, .. }
        | Layer::Dense { params: path, .. }
        | Layer::BatchNorm { params: path }
        | Layer::LayerNorm { params: path }
        | Layer::Dropout { name: path, .. } => return Ok(path),
        Layer::Relu => "relu",
        Layer::Gelu => "gelu",
        Layer::AvgPool { .. } => "avg_pool",
        Layer::MaxPool { .. } => "max_pool",
        Layer::GlobalAvgPool => "global_avg_pool",
        Layer::Flatten => "flatten",
        Layer::Add => "add",
        Layer::Concatenate => "concatenate",
        Layer::LogSoftmax => "log_softmax",
    })
}

/// Runs `f` and returns its result and the layers it evaluated. A trace around this one does not
/// see them.
pub fn trace<T>(f: impl FnOnce() -> Result<T>) -> Result<(T, Vec<TracedOp>)> {
    // Restores the outer trace when dropped, also after a panic.
    struct Restore(Option<Vec<TracedOp>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            TRACE.set(self.0.take());
        }
    }
    let _restore = Restore(TRACE.replace(Some(Vec::new())));
    let result = f()?;
    Ok((result, TRACE.take().unwrap_or_default()))
}

/// Whether layers are recorded at the moment.
pub(crate) fn is_tracing() -> bool {
    TRACE.with_borrow(Option::is_some)
}

/// Records a layer if a trace is running.
pub(crate) fn trace_op(inputs: &[&Tensor], output: &Tensor, layer: impl FnOnce() -> Layer<String>) {
    TRACE.with_borrow_mut(|trace| {
        if let Some(ops) = trace {
            let inputs = inputs.iter().map(|input| input.id()).collect();
            ops.push(TracedOp { layer: layer(), inputs, output: output.clone() });
        }
    });
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_panic_ends_the_trace() {
        let run = || trace(|| -> Result<()> { panic!("as in a cell") });
        assert!(std::panic::catch_unwind(run).is_err());
        assert!(TRACE.with_borrow(Option::is_none));
    }

    #[test]
    fn an_inner_trace_keeps_its_layers() {
        let x = Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let note = |layer| trace_op(&[&x], &x, || layer);
        let ((), outer) = trace(|| {
            note(Layer::Relu);
            let ((), inner) = trace(|| {
                note(Layer::Flatten);
                Ok(())
            })?;
            assert_eq!(inner.len(), 1);
            note(Layer::LogSoftmax);
            Ok(())
        })
        .unwrap();
        let layers = outer.into_iter().map(|op| op.layer).collect::<Vec<_>>();
        assert_eq!(layers, [Layer::Relu, Layer::LogSoftmax]);
    }
}
