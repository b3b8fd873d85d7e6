//! The numbers that figures accept, and their formats.

/// A number that can be drawn: Rust's float and integer types of up to 64 bits.
pub trait Number: Copy {
    /// The nearest `f64`.
    fn to_f64(self) -> f64;
}

macro_rules! numbers {
    ($($type:ty)*) => {
        $(impl Number for $type {
            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}

numbers!(f32 f64 u8 u16 u32 u64 usize i8 i16 i32 i64 isize);

/// Adds thousands separators (commas) to a decimal number of five or more digits.
pub fn grouped(number: &str) -> String {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("-", digits));
    let (whole, fraction) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    if whole.len() < 5 {
        return number.to_owned();
    }
    let mut text = sign.to_owned();
    for (index, digit) in whole.char_indices() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text + fraction
}

/// Whether a value fits an axis: finite, and small enough that differences do not overflow.
#[cfg(feature = "figures")]
pub(crate) fn is_drawable(value: f64) -> bool {
    value.abs() < 1e300
}

/// Formats a number with four significant digits.
pub fn short(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-4..1e7).contains(&magnitude) {
        return format!("{value:.3e}");
    }
    let decimals = (3.0 - magnitude.log10().floor()).max(0.0) as usize;
    let text = format!("{value:.decimals$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    grouped(text)
}

/// Formats counts in full, other values with four significant digits.
#[cfg(feature = "figures")]
pub(crate) fn format_value(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e9 {
        grouped(&value.to_string())
    } else {
        short(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped_from_five_digits_on() {
        let texts = ["0", "9999", "10000", "-1234567.25"].map(grouped);
        assert_eq!(texts, ["0", "9999", "10,000", "-1,234,567.25"]);
    }

    #[test]
    fn short_numbers_have_four_significant_digits() {
        let texts = [0.0, 0.132_64, 99.2, 123_456.0, 1.5e-7, f64::from(-2.0_f32)].map(short);
        assert_eq!(texts, ["0", "0.1326", "99.2", "123,456", "1.500e-7", "-2"]);
    }
}
