//! The numbers that figures accept, and their formats.

/// A number that can be drawn: Rust's float and integer types of up to 64 bits, and references to
/// them.
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

impl<N: Number> Number for &N {
    fn to_f64(self) -> f64 {
        (*self).to_f64()
    }
}

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

/// All items, or the first `count` of an endless iterator such as `1..`.
#[cfg(feature = "figures")]
pub(crate) fn until_end<I: IntoIterator>(items: I, count: usize) -> std::iter::Take<I::IntoIter> {
    let items = items.into_iter();
    let is_endless = items.size_hint().1.is_none();
    items.take(if is_endless { count } else { usize::MAX })
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

/// Formats numbers that are compared: whole numbers in full; otherwise all with the same number of
/// decimals, at which the largest has three significant digits.
#[cfg(feature = "figures")]
pub(crate) fn comparable(values: &[f64]) -> Vec<String> {
    let largest = values.iter().fold(0.0, |largest, value| f64::max(largest, value.abs()));
    let are_whole = values.iter().all(|value| value.fract() == 0.0) && largest < 1e9;
    let format = |value: &f64| {
        if are_whole {
            return grouped(&value.to_string());
        }
        if !(1e-3..1e7).contains(&largest) {
            return short(*value);
        }
        let decimals = (2.0 - largest.log10().floor()).max(1.0) as usize;
        grouped(&format!("{value:.decimals$}"))
    };
    values.iter().map(format).collect()
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

    #[cfg(feature = "figures")]
    #[test]
    fn compared_numbers_have_the_same_decimals() {
        assert_eq!(comparable(&[62.94, 1.0, 0.0, 0.22]), ["62.9", "1.0", "0.0", "0.2"]);
        assert_eq!(comparable(&[100.0, 0.03]), ["100.0", "0.0"]);
        assert_eq!(comparable(&[0.983_f64, 0.017]), ["0.983", "0.017"]);
        assert_eq!(comparable(&[5923.0, 67_421.0]), ["5923", "67,421"]);
        assert_eq!(comparable(&[1e-12, 3e9]), ["1.000e-12", "3.000e9"]);
    }
}
