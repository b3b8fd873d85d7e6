//! What is said about a series of measurements.

/// A value between the smallest and the largest: 0.5 is the median, 0.25 and 0.75 bound the middle half.
///
/// 0 if there are no values.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let position = share.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * position.fract()
}

/// The middle one of the values, or the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// `numerator / denominator`, round by round.
pub fn ratios(numerator: &[f64], denominator: &[f64]) -> Vec<f64> {
    numerator
        .iter()
        .zip(denominator)
        .map(|(numerator, denominator)| numerator / denominator)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), 3.0);
    }

    #[test]
    fn quartiles_bound_the_middle_half() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!([0.25, 0.75].map(|share| quantile(&values, share)), [2.0, 4.0]);
    }

    #[test]
    fn one_slow_round_does_not_move_the_median_of_the_ratios() {
        let (ours, theirs) = ([1.0, 10.0, 1.0], [4.0, 40.0, 400.0]);
        assert_eq!(median(&ratios(&theirs, &ours)), 4.0);
    }
}
