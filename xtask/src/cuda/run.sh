#!/usr/bin/env bash
# Runs the walkthrough, the tests and the measurements on the NVIDIA GPU of this machine, made by `cargo xtask cuda-build`.
#
#   ./run.sh [PYTHON]
#
# Needs the NVIDIA driver (580 or later) and CUDA 13's libraries: those that PYTHON (python3) has for torch or jax, or
# those of an installed toolkit. With JAX in PYTHON, JAX is measured beside. What comes of it is in the folder `results`.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
python=${1:-python3}

fail() {
    echo "error: $*" >&2
    exit 1
}

# The driver: without it no program would even start.
loads() { "$python" -c "import ctypes, sys; ctypes.CDLL(sys.argv[1])" "$1" 2>/dev/null; }
command -v "$python" >/dev/null || fail "there is no $python: name a Python 3 as first argument"
loads libcuda.so.1 ||
    fail "no NVIDIA driver: libcuda.so.1 cannot be loaded. Install the driver (580 or later; then nvidia-smi works), or start this on a machine that has a GPU."

# CUDA's libraries, wherever Python's packages have put them.
wheels=$("$python" - <<'PYTHON'
import glob, site, sys, sysconfig
roots = {sysconfig.get_paths()["purelib"], *site.getsitepackages(), site.getusersitepackages()}
print(":".join(path for root in sorted(roots) for path in sorted(glob.glob(root + "/nvidia/*/lib"))))
PYTHON
)
export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$wheels:/usr/local/cuda/lib64"

mkdir -p results
for packed in bin/*.gz; do
    program=${packed%.gz}
    [ -x "$program" ] || { gunzip --stdout "$packed" >"$program" && chmod +x "$program"; }
    missing=$(ldd "$program" | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
    [ -z "$missing" ] ||
        fail "not found: ${missing% }. Install CUDA 13's libraries: $python -m pip install nvidia-cublas nvidia-curand nvidia-cuda-nvrtc nvidia-cuda-runtime"
done

export MNIST_DATA_DIR="$here/data"
{ date && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; } | tee results/machine.txt ||
    echo "Going on without nvidia-smi."
echo "The first start compiles candle's kernels for this GPU, about half a minute; the driver keeps them in ~/.nv."

echo "== The walkthrough"
(cd notebooks && time ../bin/annotated_mnist ../results/figures) 2>&1 | tee results/walkthrough.txt
# On a CPU everything below would pass, too, and say nothing.
grep -q "^Running on the NVIDIA GPU" results/walkthrough.txt || fail "$(grep "^Running on" results/walkthrough.txt)"
echo "== Tests"
bin/tests --test-threads 1 2>&1 | tee results/tests.txt
echo "== Speed"
jax=()
"$python" -c "import jax, flax, optax" 2>/dev/null && jax=("$python" xtask/peers/jax_steps.py)
[ ${#jax[@]} -gt 0 ] || echo "Without JAX beside: $python has no jax, flax and optax."
# Both share the card: JAX must not take its memory in advance.
XLA_PYTHON_CLIENT_PREALLOCATE=false bin/bench_gpu results/speed.md "${jax[@]}" 2>&1 | tee results/speed.txt
