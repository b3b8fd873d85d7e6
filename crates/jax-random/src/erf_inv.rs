//! The inverse error function as XLA computes it on a CPU, to the last bit.
//!
//! Any other logarithm differs in the last bit of about one value in a hundred. That does not
//! matter for one training step, but two runs from such weights diverge within a few hundred steps,
//! even in double precision. Exact values let a run be compared with Flax's.
//!
//! XLA contracts every multiplication and addition into an FMA, hence `mul_add`. Coefficients are
//! given as bits because their decimal forms are not exact.

/// The inverse of the error function, for `-1 <= x <= 1`.
///
/// M. Giles, *Approximating the erfinv function*, GPU Computing Gems, 2011.
pub(crate) fn erf_inv(x: f32) -> f32 {
    const CENTRAL: [u32; 9] = [
        0x32F1_6588,
        0x34B8_4B36,
        0xB66C_7357,
        0xB693_5AC1,
        0x3965_32DB,
        0xBAA4_5408,
        0xBB88_E4EF,
        0x3E7C_8F63,
        0x3FC0_2E2F,
    ];
    const TAIL: [u32; 9] = [
        0xB951_F09B,
        0x38D3_B56B,
        0x3AB0_DC72,
        0xBB70_BDE7,
        0x3BBC_127B,
        0xBBF9_C5D7,
        0x3C1A_A57E,
        0x3F80_36DB,
        0x4035_4F7E,
    ];
    if x.abs() == 1.0 {
        return x * f32::INFINITY;
    }
    let w = -log1p(-(x * x));
    if w < 5.0 { polynomial(CENTRAL, w - 2.5) * x } else { polynomial(TAIL, w.sqrt() - 3.0) * x }
}

/// `ln(1 + x)`, for `-1 < x <= 0`: the rational function of the Cephes library near zero.
fn log1p(x: f32) -> f32 {
    const NUMERATOR: [u32; 7] =
        [0x383D_E04B, 0x3EFF_40C5, 0x40D2_84FA, 0x41EF_4B9C, 0x4273_CC76, 0x4264_73AD, 0x41A0_5101];
    const DENOMINATOR: [u32; 7] =
        [0x3F80_0000, 0x4171_01AD, 0x42A6_185B, 0x435D_C32D, 0x439A_8CA3, 0x4358_6D8A, 0x4270_7982];
    const SQRT_2_MINUS_1: f32 = f32::from_bits(0x3ED4_13CD);
    if x.abs() >= SQRT_2_MINUS_1 {
        return log(x + 1.0);
    }
    let square = x * x;
    let ratio = polynomial(NUMERATOR, x) / polynomial(DENOMINATOR, x);
    x + (-0.5f32).mul_add(square, x * square * ratio)
}

/// The natural logarithm of a positive normal number, as in the Cephes library.
fn log(y: f32) -> f32 {
    const HIGH: [u32; 3] = [0x3D90_21BB, 0xBDEB_D1B8, 0x3DEF_251A];
    const MIDDLE: [u32; 3] = [0xBDFE_5D4F, 0x3E11_E9BF, 0xBE2A_AE50];
    const LOW: [u32; 3] = [0x3E4C_CEAC, 0xBE7F_FFFC, 0x3EAA_AAAA];
    // ln 2 in two parts, the larger one with few bits.
    const LN_2_SMALL: f32 = f32::from_bits(0xB95E_8083);
    const LN_2_LARGE: f32 = f32::from_bits(0x3F31_8000);
    const SQRT_HALF: f32 = f32::from_bits(0x3F35_04F3);

    // y = mantissa · 2^exponent, with the mantissa between √½ and √2
    let mut exponent = (y.to_bits() >> 23) as f32 - 126.0;
    let mantissa = f32::from_bits(y.to_bits() & 0x007F_FFFF | 0x3F00_0000);
    let mut x = mantissa - 1.0;
    if mantissa < SQRT_HALF {
        exponent -= 1.0;
        x += mantissa;
    }
    let (square, cube) = (x * x, x * x * x);
    let series = polynomial(HIGH, x).mul_add(cube, polynomial(MIDDLE, x));
    let series = series.mul_add(cube, polynomial(LOW, x));
    let tail = series.mul_add(cube, exponent * LN_2_SMALL);
    x - 0.5 * square + tail + exponent * LN_2_LARGE
}

/// A polynomial from its coefficients, the highest power first.
fn polynomial<const N: usize>(coefficients: [u32; N], x: f32) -> f32 {
    coefficients.into_iter().map(f32::from_bits).reduce(|p, c| p.mul_add(x, c)).unwrap_or(0.0)
}
