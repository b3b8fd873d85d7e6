//! Shows progress: a spinner in a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A line with a spinner, the elapsed time and the last message.
pub struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// Starts a spinner for the task `title`.
    pub fn new(title: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) =
            ProgressStyle::with_template("        {spinner} {prefix} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.set_prefix(title.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar }
    }

    /// Resets the clock and sets a new title.
    pub fn restart(&self, title: &str) {
        self.bar.set_prefix(title.to_owned());
        self.bar.set_message("");
        self.bar.reset_elapsed();
    }

    /// Shows messages: only the last one in a terminal, all of them as lines elsewhere.
    pub fn messages(&self) -> impl Fn(&str) + Send + use<> {
        let bar = self.bar.clone();
        move |message: &str| {
            if bar.is_hidden() {
                println!("        {message}");
            }
            bar.set_message(message.to_owned());
        }
    }

    /// Prints a permanent line.
    pub fn line(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
