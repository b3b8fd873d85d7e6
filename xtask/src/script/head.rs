//!
//! Started in the folder of the notebook, whose relative paths it keeps. Figures are saved in `{name}_files`, or in the
//! folder that the first argument names.

#![allow(unused, non_local_definitions, clippy::all)]

fn main() -> std::process::ExitCode {
    match cells() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// Shows the result of a cell: a figure goes to a file, too.
macro_rules! show {
    ($value:expr) => {{
        let value = &$value;
        value.save_figure();
        value.evcxr_display();
    }};
}

/// What has no `evcxr_display` of its own is shown as it is under evcxr: by `Debug`.
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
