//! SIMD loops over the channels of a pixel.
//!
//! A pixel has few channels. LLVM unrolls auto-vectorized loops by several vectors, so such a
//! short row would mostly run in the scalar epilogue.

use pulp::Simd;

/// Adjacent channels: a full vector, or the tail.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<S> {
    pub(crate) simd: S,
    /// The number of vectors before this one.
    index: usize,
    /// Channels in the tail; 0 for a full vector.
    tail: usize,
}

/// Calls `work` for all channels, a vector at a time.
#[inline(always)]
pub(crate) fn for_each_vector<S: Simd>(simd: S, channels: usize, mut work: impl FnMut(Lanes<S>)) {
    let vectors = channels / S::F32_LANES;
    for index in 0..vectors {
        work(Lanes { simd, index, tail: 0 });
    }
    let tail = channels % S::F32_LANES;
    if tail > 0 {
        work(Lanes { simd, index: vectors, tail });
    }
}

impl<S: Simd> Lanes<S> {
    /// Loads these channels of the pixel at the start of a slice, padded with zeros.
    #[inline(always)]
    pub(crate) fn load(self, pixel: &[f32]) -> S::f32s {
        if self.tail == 0 {
            S::as_simd_f32s(pixel).0[self.index]
        } else {
            self.simd.partial_load_f32s(&pixel[self.index * S::F32_LANES..][..self.tail])
        }
    }

    /// Stores these channels of the pixel at the start of a slice.
    #[inline(always)]
    pub(crate) fn store(self, vector: S::f32s, pixel: &mut [f32]) {
        if self.tail == 0 {
            S::as_mut_simd_f32s(pixel).0[self.index] = vector;
        } else {
            let values = &mut pixel[self.index * S::F32_LANES..][..self.tail];
            self.simd.partial_store_f32s(values, vector);
        }
    }

    /// [`Self::load`] for u32 values.
    #[inline(always)]
    pub(crate) fn load_u32s(self, pixel: &[u32]) -> S::u32s {
        if self.tail == 0 {
            S::as_simd_u32s(pixel).0[self.index]
        } else {
            self.simd.partial_load_u32s(&pixel[self.index * S::F32_LANES..][..self.tail])
        }
    }

    /// [`Self::store`] for u32 values.
    #[inline(always)]
    pub(crate) fn store_u32s(self, vector: S::u32s, pixel: &mut [u32]) {
        if self.tail == 0 {
            S::as_mut_simd_u32s(pixel).0[self.index] = vector;
        } else {
            let values = &mut pixel[self.index * S::F32_LANES..][..self.tail];
            self.simd.partial_store_u32s(values, vector);
        }
    }
}
