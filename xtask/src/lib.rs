//! The library behind `cargo xtask`: sets up, executes, checks and measures the notebooks.
//!
//! | module | what it does |
//! |---|---|
//! | [`process`] | starts other programs |
//! | [`mod@python`] | finds Python and makes isolated environments |
//! | [`project`] | paths in the project folder |
//! | [`jupyter`] | installs JupyterLab's Python environment, and starts JupyterLab |
//! | [`device`] | chooses the GPU or the CPU, and fetches what it needs |
//! | [`setup`] | sets up that environment, the evcxr kernel and its warm build folder |
//! | [`lock`] | pins Python packages for every supported Python version |
//! | [`kernel`] | talks to a running kernel through a small Python program |
//! | [`notebook`] | reads and writes `.ipynb` files |
//! | [`execute`] | executes a notebook, cell by cell |
//! | [`check`] | finds failures in an executed notebook |
//! | [`faults`] | runs tests and adds up the faults that they inject |
//! | [`mirror`] | compares the walkthrough's definitions with the crate's |
//! | [`tidy`] | checks the form of committed notebooks |
//! | [`mod@bench`] | measures how long a reader waits |
//! | [`site`] | makes the website, with the page that trains in the browser |
//! | [`speed`] | compares training speed with JAX and PyTorch |
//! | [`page`] | converts an executed notebook into an HTML page |
//! | [`script`] | converts a notebook into a Rust program |
//! | [`cuda`] | NVIDIA's driver and toolkit; builds for another machine with a GPU |
//! | [`emulate`] | runs the tests of `cpu-kernels` on emulated processors |
//! | [`browser`] | runs the walkthrough in a real browser |
//! | [`ui`] | shows progress |

/// Like std's `println!`, but ignores write errors: a closed pipe (`| head`) or a full disk must
/// not stop a command.
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
pub mod device;
pub mod emulate;
pub mod execute;
pub mod faults;
pub mod jupyter;
pub mod kernel;
pub mod lock;
pub mod mirror;
pub mod notebook;
pub mod page;
pub mod process;
pub mod project;
pub mod python;
pub mod script;
pub mod setup;
pub mod site;
pub mod speed;
pub mod tidy;
pub mod ui;
