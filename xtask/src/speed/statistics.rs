//! Statistics of measurements.

/// The `q`-quantile with linear interpolation; 0 if there are no values.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let below = position.floor() as usize;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * position.fract()
}

/// The median; for an even number of values, the mean of the middle two.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// `numerator / denominator`, element by element.
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
    fn the_median_of_an_even_number_is_the_mean_of_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), 3.0);
    }

    #[test]
    fn quartiles_bound_the_middle_half() {
        let values = [5.0, 1.0, 3.0, 2.0, 4.0];
        assert_eq!([0.25, 0.75].map(|q| quantile(&values, q)), [2.0, 4.0]);
    }

    #[test]
    fn one_slow_round_does_not_move_the_median_of_the_ratios() {
        let (ours, theirs) = ([1.0, 10.0, 1.0], [4.0, 40.0, 400.0]);
        assert_eq!(median(&ratios(&theirs, &ours)), 4.0);
    }
}
