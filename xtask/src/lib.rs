//! What stands behind `cargo xtask`: setting up, executing, checking and measuring the notebooks.
//!
//! | module | what it does |
//! |---|---|
//! | [`process`] | other programs: how they are started and end |
//! | [`mod@python`] | finds Python, makes environments, keeps them apart from the user's own |
//! | [`project`] | where things are |
//! | [`jupyter`] | the Python environment of JupyterLab |
//! | [`setup`] | that environment, evcxr kernel, kernelspec, warm build folder |
//! | [`lock`] | pins of Python packages that hold for every supported Python |
//! | [`kernel`] | a running kernel, through a small Python program |
//! | [`notebook`] | reads and writes `.ipynb` |
//! | [`execute`] | executes a notebook, cell by cell |
//! | [`check`] | finds what failed in an executed notebook |
//! | [`faults`] | runs tests and adds up the faults that they inject |
//! | [`tidy`] | what a committed notebook must look like |
//! | [`mod@bench`] | how long a reader waits |
//! | [`speed`] | how fast training is, beside JAX and PyTorch |
//! | [`script`] | a notebook as an ordinary Rust program |
//! | [`cuda`] | the feature `cuda` built without a GPU |
//! | [`browser`] | the walkthrough in a real browser |
//! | [`ui`] | progress on screen |

/// Prints a line as std's macro of this name does, and drops it where it cannot be written: no
/// reader that has gone (`| head`) and no full disk ends what runs here.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        use ::std::io::Write as _;
        let _ = ::std::writeln!(::std::io::stdout(), $($text)*);
    }};
}

pub mod bench;
pub mod browser;
pub mod check;
pub mod cuda;
pub mod execute;
pub mod faults;
pub mod jupyter;
pub mod kernel;
pub mod lock;
pub mod notebook;
pub mod process;
pub mod project;
pub mod python;
pub mod script;
pub mod setup;
pub mod speed;
pub mod tidy;
pub mod ui;
