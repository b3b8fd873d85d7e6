fail() {
    echo "error: $*" >&2
    exit 1
}
fail_without() {
    fail "not found: $*. Install CUDA 13's libraries: $python -m pip install nvidia-cublas" \
        "nvidia-curand nvidia-cuda-nvrtc nvidia-cuda-runtime"
}

# Programs do not start without the driver, so check for it first.
loads() { "$python" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }
command -v "$python" >/dev/null || fail "cannot find $python: pass a Python 3 as first argument"
loads libcuda.so.1 ||
    fail "no NVIDIA driver: libcuda.so.1 cannot be loaded. Install the driver (580 or later;" \
        "nvidia-smi shows its version), or run this on a machine with a GPU."
shows_gpu() {
    "$python" - <<'PYTHON'
import ctypes, sys
driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
sys.exit(driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value)
PYTHON
}
shows_gpu ||
    fail "NVIDIA's driver shows no GPU: see what nvidia-smi lists, and whether" \
        "CUDA_VISIBLE_DEVICES hides it."

# CUDA's libraries in Python's packages.
wheels=$("$python" - <<'PYTHON'
import glob, site, sys, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages(), site.getusersitepackages()}
folders = [path for root in sorted(roots) for path in sorted(glob.glob(root + "/nvidia/*/lib"))]
print(":".join(folders))
PYTHON
)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels:/usr/local/cuda/lib64"
