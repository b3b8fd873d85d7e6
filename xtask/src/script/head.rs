//!
//! Start it in the notebook's folder: relative paths are unchanged. Figures are saved in the folder
//! named by the first argument, by default `{name}_files`.

#![allow(unused, non_local_definitions, clippy::all)]

/// Drops a line that cannot be written: a closed pipe (`| head`) or a full disk must not end hours
/// of training.
macro_rules! println {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

fn main() -> std::process::ExitCode {
    match cells() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Shows the result of a cell and, if it is a figure, saves it.
macro_rules! show {
    ($value:expr) => {{
        let value = &$value;
        value.save_figure();
        value.evcxr_display();
    }};
}

/// Types without their own `evcxr_display` are shown with `Debug`, as in evcxr.
trait Show {
    fn evcxr_display(&self);
}

impl<T: std::fmt::Debug> Show for T {
    fn evcxr_display(&self) {
        match format!("{self:?}") {
            nothing if nothing == "()" => {}
            text => println!("{text}"),
        }
    }
}
