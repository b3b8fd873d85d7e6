//! SIMD loops over the channels of a pixel.
//!
//! A pixel has few channels. LLVM unrolls auto-vectorized loops by several vectors, so such a
//! short row would mostly run in the scalar epilogue.

use pulp::Simd;

/// Adjacent channels: a full vector, or the tail.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S> {
    pub(crate) simd: S,
    first: usize,
    len: usize,
}

/// Calls `work` for all channels, a vector at a time.
#[inline(always)]
pub(crate) fn for_each_vector<S: Simd>(simd: S, channels: usize, mut work: impl FnMut(Lanes<S>)) {
    let tail = channels / S::F32_LANES * S::F32_LANES;
    for first in (0..tail).step_by(S::F32_LANES) {
        work(Lanes { simd, first, len: S::F32_LANES });
    }
    if tail < channels {
        work(Lanes { simd, first: tail, len: channels - tail });
    }
}

impl<S: Simd> Lanes<S> {
    /// Loads these channels of the pixel at the start of a slice, padded with zeros.
    #[inline(always)]
    pub(crate) fn load(self, pixel: &[f32]) -> S::f32s {
        let values = &pixel[self.first..][..self.len];
        match S::as_simd_f32s(values).0 {
            [vector, ..] => *vector,
            [] => self.simd.partial_load_f32s(values),
        }
    }

    /// Stores these channels of the pixel at the start of a slice.
    #[inline(always)]
    pub(crate) fn store(self, vector: S::f32s, pixel: &mut [f32]) {
        let values = &mut pixel[self.first..][..self.len];
        match S::as_mut_simd_f32s(values).0 {
            [target, ..] => *target = vector,
            [] => self.simd.partial_store_f32s(values, vector),
        }
    }

    /// [`Self::load`] for u32 values.
    #[inline(always)]
    pub(crate) fn load_u32s(self, pixel: &[u32]) -> S::u32s {
        let values = &pixel[self.first..][..self.len];
        match S::as_simd_u32s(values).0 {
            [vector, ..] => *vector,
            [] => self.simd.partial_load_u32s(values),
        }
    }

    /// [`Self::store`] for u32 values.
    #[inline(always)]
    pub(crate) fn store_u32s(self, vector: S::u32s, pixel: &mut [u32]) {
        let values = &mut pixel[self.first..][..self.len];
        match S::as_mut_simd_u32s(values).0 {
            [target, ..] => *target = vector,
            [] => self.simd.partial_store_u32s(values, vector),
        }
    }
}
