//! Progress on screen: a spinner in a terminal, plain lines elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One line that shows that something is at work, for how long, and what it last said.
pub struct Spinner {
    bar: ProgressBar,
}

impl Spinner {
    /// A spinner for the work that `title` names.
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

    /// Sets the clock to zero and names the work anew.
    pub fn restart(&self, title: &str) {
        self.bar.set_prefix(title.to_owned());
        self.bar.set_message("");
        self.bar.reset_elapsed();
    }

    /// Shows what the work says: the last message in a terminal, all of them as lines elsewhere.
    pub fn messages(&self) -> impl Fn(&str) + Send + use<> {
        let bar = self.bar.clone();
        move |message: &str| {
            if bar.is_hidden() {
                println!("        {message}");
            }
            bar.set_message(message.to_owned());
        }
    }

    /// Prints a line that stays.
    pub fn line(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
