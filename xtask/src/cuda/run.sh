#!/usr/bin/env bash
# Runs the walkthrough, the tests and the benchmark on this machine's NVIDIA GPU. Part of the bundle
# made by `cargo xtask cuda-build`.
#
#   ./run.sh [PYTHON]
#
# Needs the NVIDIA driver (580 or later) and CUDA 13's libraries, either from the torch or jax
# packages of PYTHON (default: python3) or from an installed toolkit. If PYTHON has JAX or PyTorch,
# they are measured, too. Results are saved in the folder `results`.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
python=${1:-python3}

# @MACHINE@
mkdir -p results
for packed in bin/*.gz; do
    program=${packed%.gz}
    [ -x "$program" ] || { gunzip --stdout "$packed" >"$program" && chmod +x "$program"; }
    missing=$(ldd "$program" | awk '/not found/ { print $1 }' | sort -u | tr '\n' ' ')
    [ -z "$missing" ] || fail_without "${missing% }"
done

export MNIST_DATA_DIR="$here/data"
{ date && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; } |
    tee results/machine.txt || echo "Going on without nvidia-smi."
echo "The first run compiles candle's kernels for this GPU, which takes about half a minute;" \
    "the driver caches them in ~/.nv."

echo "== Walkthrough"
(cd notebooks && time ../bin/annotated_mnist ../results/figures) 2>&1 | tee results/walkthrough.txt
# Everything below would also pass on a CPU and prove nothing.
grep -q "^Running on the NVIDIA GPU" results/walkthrough.txt ||
    fail "$(grep "^Running on" results/walkthrough.txt)"
echo "== Tests"
bin/tests --test-threads 1 2>&1 | tee results/tests.txt
echo "== Speed"
scripts=()
# Adds a script if the Python code, which prints a version, succeeds.
peer() {
    if "$python" -c "$3" 2>/dev/null | tee -a results/machine.txt; then
        scripts+=("xtask/peers/$2")
    else
        echo "Going on without $1: $python lacks its packages, or they find no GPU."
    fi
}
peer JAX jax_steps.py 'import jax, flax, optax
assert jax.default_backend() == "gpu"
print("JAX", jax.__version__)'
peer PyTorch torch_steps.py 'import torch
assert torch.cuda.is_available()
print("PyTorch", torch.__version__)'
# All use the same GPU: JAX must not preallocate its memory.
XLA_PYTHON_CLIENT_PREALLOCATE=false bin/bench_gpu results/speed.md "$python" ${scripts[@]+"${scripts[@]}"} 2>&1 |
    tee results/speed.txt
