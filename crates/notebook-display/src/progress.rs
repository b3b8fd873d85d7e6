//! Progress of long work: lines in a notebook, a progress bar in a terminal.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::number::grouped;
use crate::println;

/// Reports the progress of long work on standard output.
///
/// In a terminal a bar is redrawn in place and disappears at the end. Elsewhere, as in a notebook,
/// a line is printed at most every 5 seconds and at most once per fifth of the work; work that
/// takes less than 5 seconds prints nothing. Every line begins with `▕`, which distinguishes it
/// from results.
///
/// # Examples
/// ```
/// # use notebook_display::Progress;
/// let steps = 1875;
/// let mut progress = Progress::new("epoch 1", steps);
/// for _ in 0..steps {
///     // … train on 32 images …
///     progress.step(32, || Some("loss 0.0312".to_owned()));
/// }
/// progress.finish();
/// ```
#[derive(Debug)]
pub struct Progress {
    meter: Meter,
    start: Instant,
    /// In a terminal only.
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Starts measuring work of `total_steps` steps.
    pub fn new(label: impl std::fmt::Display, total_steps: usize) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            let plain = ProgressStyle::with_template("{wide_msg}");
            bar.with_style(plain.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let pace = if bar.is_some() { Pace::REDRAWN } else { Pace::LINES };
        Self { meter: Meter::new(label.to_string(), total_steps, pace), start: Instant::now(), bar }
    }

    /// Counts one more step, which processed this number of images.
    ///
    /// `status` is called only when a line is due, because it may wait for a device; the line
    /// omits a status of `None`. Other calls only read the clock.
    pub fn step(&mut self, images: usize, status: impl FnOnce() -> Option<String>) {
        let Some(line) = self.meter.step(self.start.elapsed(), images, status) else {
            return;
        };
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None => println!("{line}"),
        }
    }

    /// Removes the bar from a terminal.
    pub fn finish(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// How often a line is shown.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Minimum time between two lines.
    interval: Duration,
    /// Minimum fraction of the work between two lines.
    fraction: f64,
}

impl Pace {
    const LINES: Self = Self { interval: Duration::from_secs(5), fraction: 0.2 };
    const REDRAWN: Self = Self { interval: Duration::from_millis(100), fraction: 0.0 };
}

/// Decides when a line is due and formats it; the caller passes the time.
#[derive(Debug)]
struct Meter {
    label: String,
    total_steps: usize,
    pace: Pace,
    steps: usize,
    images: usize,
    /// The next line is due when this time and this fraction of the work are reached.
    next_due: (Duration, f64),
}

impl Meter {
    fn new(label: String, total_steps: usize, pace: Pace) -> Self {
        Self { label, total_steps, pace, steps: 0, images: 0, next_due: (pace.interval, 0.0) }
    }

    fn step(
        &mut self,
        now: Duration,
        images: usize,
        status: impl FnOnce() -> Option<String>,
    ) -> Option<String> {
        self.steps += 1;
        self.images += images;
        if now < self.next_due.0 {
            return None;
        }
        let fraction = (self.steps as f64 / self.total_steps.max(1) as f64).min(1.0);
        if fraction < self.next_due.1 {
            return None;
        }
        self.next_due = (now + self.pace.interval, fraction + self.pace.fraction);
        Some(line(&self.label, fraction, status(), self.images, now))
    }
}

/// `▕███▏      ▏  31 %  epoch 3  loss 0.0312  accuracy 99.01 %  0:42 left  14,200 images/s`
///
/// The least important part is last because a narrow terminal truncates the line.
fn line(
    label: &str,
    fraction: f64,
    status: Option<String>,
    images: usize,
    elapsed: Duration,
) -> String {
    let percent = (fraction * 100.0).floor();
    let mut line = format!("▕{}▏ {percent:3.0} %  {label}", bar(fraction));
    if let Some(status) = status {
        line += &format!("  {status}");
    }
    let seconds = elapsed.as_secs_f64();
    if fraction > 0.0 {
        line += &format!("  {} left", clock(seconds * (1.0 - fraction) / fraction));
    }
    if seconds > 0.0 {
        let speed = format!("{:.0}", images as f64 / seconds);
        line += &format!("  {} images/s", grouped(&speed));
    }
    line
}

/// A bar of ten columns, filled in steps of an eighth of a column.
fn bar(fraction: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (fraction.clamp(0.0, 1.0) * 80.0) as usize;
    let filled = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    format!("{filled:<10}")
}

/// `0:42`, `12:05`, `1:02:09`; rounded to seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.min(3.6e8).round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The times, in seconds, at which work with steps of equal duration prints a line.
    fn printed(steps: usize, seconds_per_step: f64) -> Vec<f64> {
        let mut meter = Meter::new("epoch 1".into(), steps, Pace::LINES);
        let times = (1..=steps).map(|step| step as f64 * seconds_per_step);
        let shown = times.filter(|time| {
            let now = Duration::from_secs_f64(*time);
            meter.step(now, 32, || None).is_some()
        });
        shown.collect()
    }

    #[test]
    fn a_line_has_bar_label_status_speed_and_time_left() {
        let status = "loss 0.0312  accuracy 99.01 %";
        let line = line("epoch 3", 0.25, Some(status.into()), 15_000, 10 * SECOND);
        let expected = format!("▕██▌       ▏  25 %  epoch 3  {status}  0:30 left  1500 images/s");
        assert_eq!(line, expected);
    }

    #[test]
    fn a_status_of_none_is_omitted() {
        let mut meter = Meter::new("epoch 1".into(), 100, Pace::LINES);
        let line = meter.step(5 * SECOND, 320, || None).unwrap();
        assert_eq!(line, "▕          ▏   1 %  epoch 1  8:15 left  64 images/s");
    }

    #[test]
    fn the_status_is_computed_only_when_a_line_is_due() {
        let mut meter = Meter::new("epoch 1".into(), 100, Pace::LINES);
        let fetch = || unreachable!("no line is due after four seconds");
        assert_eq!(meter.step(4 * SECOND, 32, fetch), None);
    }

    #[test]
    fn short_work_prints_nothing() {
        assert!(printed(1875, 4.9 / 1875.0).is_empty());
    }

    #[test]
    fn lines_are_at_least_five_seconds_apart() {
        let times = printed(1000, 0.02);
        assert_eq!(times, [5.0, 10.0, 15.0, 20.0]);
    }

    #[test]
    fn long_work_prints_at_most_six_lines() {
        let times = printed(100_000, 0.1);
        assert!((5..=6).contains(&times.len()), "{times:?}");
    }

    #[test]
    fn the_bar_is_always_ten_columns_wide() {
        for percent in 0..=100 {
            assert_eq!(bar(f64::from(percent) / 100.0).chars().count(), 10, "{percent} %");
        }
        assert_eq!(bar(0.5), "█████     ");
        assert_eq!(bar(0.53), "█████▎    ");
    }

    #[test]
    fn work_without_steps_does_not_divide_by_zero() {
        let mut meter = Meter::new("nothing".into(), 0, Pace::LINES);
        let line = meter.step(5 * SECOND, 0, || None).unwrap();
        assert!(line.ends_with("100 %  nothing  0:00 left  0 images/s"), "{line}");
    }

    #[test]
    fn durations_are_formatted_as_a_clock() {
        assert_eq!([42.4, 725.0, 3729.0].map(clock), ["0:42", "12:05", "1:02:09"]);
    }
}
