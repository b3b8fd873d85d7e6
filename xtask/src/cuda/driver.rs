//! What NVIDIA's driver reports about the GPU, asked through the driver's library.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

use anyhow::{Context, Result, bail};
use libloading::Library;

/// The driver's library.
const LIBRARY: &str = "libcuda.so.1";
/// CUDA's variable that names the GPUs that the driver shows.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: c_int = 100;
/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `…_MINOR`.
const CAPABILITY: [c_int; 2] = [75, 76];

/// A version of CUDA or a compute capability, such as 13.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// An NVIDIA GPU and its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// The model, such as `NVIDIA H200`.
    pub name: String,
    /// The compute capability.
    pub capability: Version,
    /// The newest CUDA that the driver takes.
    pub cuda: Version,
}

/// The first NVIDIA GPU, the one that the notebooks use; `None` without a driver or a GPU.
///
/// # Errors
/// If the driver fails, or a variable may hide the GPU; the message has the reason.
pub fn find_gpu() -> Result<Option<Gpu>> {
    const FAILS: &str = "NVIDIA's driver fails";
    // SAFETY: The library is NVIDIA's driver, whose initializers every CUDA program runs.
    let library = match unsafe { Library::new(LIBRARY) }.map_err(anyhow::Error::from) {
        Ok(library) => library,
        Err(error) if is_absent(&format!("{error:#}")) => return Ok(None),
        Err(error) => return Err(error).context(FAILS),
    };
    // Never unloaded, because the driver may have started threads.
    let driver = Driver { library: Box::leak(Box::new(library)) };
    let gpu = driver.first_gpu().context(FAILS)?;
    if let (None, Some(value)) = (&gpu, std::env::var_os(VISIBLE)) {
        bail!(
            "with {VISIBLE}={value:?}, NVIDIA's driver shows no GPU: unset the variable if it \
             hides yours"
        );
    }
    Ok(gpu)
}

/// Whether the loader's error says that there is no driver, not that something is wrong with it.
fn is_absent(error: &str) -> bool {
    let is_missing = error.contains(&format!("{LIBRARY}: ")) && error.contains("No such file");
    is_missing || cfg!(not(target_os = "linux")) // where NVIDIA has no driver
}

/// The driver's loaded library.
struct Driver {
    library: &'static Library,
}

impl Driver {
    fn first_gpu(&self) -> Result<Option<Gpu>> {
        // SAFETY: The types of this function and those below are those in cuda.h.
        let init: unsafe extern "C" fn(c_uint) -> c_int = unsafe { self.function("cuInit") }?;
        // SAFETY: The function has no preconditions.
        let code = unsafe { init(0) };
        if code == NO_DEVICE {
            return Ok(None);
        }
        self.check("cuInit", code)?;
        let count = self.number("cuDeviceGetCount")?;
        if count == 0 {
            return Ok(None);
        }
        let cuda = u32::try_from(self.number("cuDriverGetVersion")?)?;
        Ok(Some(Gpu {
            name: self.name()?,
            capability: Version(self.attribute(CAPABILITY[0])?, self.attribute(CAPABILITY[1])?),
            cuda: Version(cuda / 1000, cuda % 1000 / 10),
        }))
    }

    /// Calls a function that writes a number.
    fn number(&self, name: &str) -> Result<c_int> {
        let mut number = 0;
        // SAFETY: See `first_gpu`.
        let get: unsafe extern "C" fn(*mut c_int) -> c_int = unsafe { self.function(name) }?;
        // SAFETY: The pointer is valid, and the driver is initialized.
        self.check(name, unsafe { get(&raw mut number) })?;
        Ok(number)
    }

    /// The first GPU's name.
    fn name(&self) -> Result<String> {
        const NAME: &str = "cuDeviceGetName";
        let mut text: [c_char; 256] = [0; 256];
        // SAFETY: See `first_gpu`.
        let get: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int =
            unsafe { self.function(NAME) }?;
        // SAFETY: The pointer is valid for one less than the length, so a zero ends the text.
        self.check(NAME, unsafe { get(text.as_mut_ptr(), text.len() as c_int - 1, 0) })?;
        // SAFETY: The text ends within the array.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// An attribute of the first GPU.
    fn attribute(&self, attribute: c_int) -> Result<u32> {
        const NAME: &str = "cuDeviceGetAttribute";
        let mut value = 0;
        // SAFETY: See `first_gpu`.
        let get: unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int =
            unsafe { self.function(NAME) }?;
        // SAFETY: The pointer is valid, and the GPU with index 0 exists.
        self.check(NAME, unsafe { get(&raw mut value, attribute, 0) })?;
        Ok(u32::try_from(value)?)
    }

    /// Fails with the driver's reason unless the code means success.
    fn check(&self, name: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text: *const c_char = std::ptr::null();
        // SAFETY: See `first_gpu`.
        let describe: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int =
            unsafe { self.function("cuGetErrorString") }?;
        // SAFETY: The pointer is valid.
        if unsafe { describe(code, &raw mut text) } != 0 || text.is_null() {
            bail!("{name} returned {code}");
        }
        // SAFETY: The driver's texts are constants.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        bail!("{text} ({name} returned {code})")
    }

    /// A function of the driver.
    ///
    /// # Safety
    /// `F` must be the function's type.
    unsafe fn function<F: Copy>(&self, name: &str) -> Result<F> {
        // SAFETY: The caller guarantees the type.
        let function = unsafe { self.library.get::<F>(name) };
        Ok(*function.with_context(|| format!("{LIBRARY} has no function {name}"))?)
    }
}
