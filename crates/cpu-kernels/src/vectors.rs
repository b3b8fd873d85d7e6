//! Loops over the channels of a pixel, one vector of them at a time.
//!
//! A pixel has few channels. The loops that a compiler makes of plain code are for long arrays: it
//! unrolls them, and what a pixel has is then left to their rest, value by value.

use pulp::Simd;

/// Neighbouring channels: a whole vector, or what is left behind the last whole one.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S> {
    pub(crate) simd: S,
    first: usize,
    len: usize,
}

/// Calls `work` for all channels, a vector at a time.
#[inline(always)]
pub(crate) fn for_each_vector<S: Simd>(simd: S, channels: usize, mut work: impl FnMut(Lanes<S>)) {
    let whole = channels / S::F32_LANES * S::F32_LANES;
    for first in (0..whole).step_by(S::F32_LANES) {
        work(Lanes { simd, first, len: S::F32_LANES });
    }
    if whole < channels {
        work(Lanes { simd, first: whole, len: channels - whole });
    }
}

impl<S: Simd> Lanes<S> {
    /// These channels of the pixel at the start of a slice, and zeros to fill the vector.
    #[inline(always)]
    pub(crate) fn load(self, pixel: &[f32]) -> S::f32s {
        let values = &pixel[self.first..][..self.len];
        match S::as_simd_f32s(values).0 {
            [vector, ..] => *vector,
            [] => self.simd.partial_load_f32s(values),
        }
    }

    /// The counterpart of [`Self::load`].
    #[inline(always)]
    pub(crate) fn store(self, vector: S::f32s, pixel: &mut [f32]) {
        let values = &mut pixel[self.first..][..self.len];
        match S::as_mut_simd_f32s(values).0 {
            [target, ..] => *target = vector,
            [] => self.simd.partial_store_f32s(values, vector),
        }
    }

    /// [`Self::load`] for marks.
    #[inline(always)]
    pub(crate) fn load_marks(self, pixel: &[u32]) -> S::u32s {
        let marks = &pixel[self.first..][..self.len];
        match S::as_simd_u32s(marks).0 {
            [vector, ..] => *vector,
            [] => self.simd.partial_load_u32s(marks),
        }
    }

    /// [`Self::store`] for marks.
    #[inline(always)]
    pub(crate) fn store_marks(self, vector: S::u32s, pixel: &mut [u32]) {
        let marks = &mut pixel[self.first..][..self.len];
        match S::as_mut_simd_u32s(marks).0 {
            [target, ..] => *target = vector,
            [] => self.simd.partial_store_u32s(marks, vector),
        }
    }
}
