#!/usr/bin/env bash
# Executes the walkthrough, cell by cell, on this machine's NVIDIA GPU. Made by
# `cargo xtask cuda-build --notebook`, together with the files part-*.
#
#   ./run-notebook.sh [PYTHON]
#
# Needs the NVIDIA driver (580 or later), a C compiler for linking, Python 3.10 to 3.14, and CUDA
# 13's libraries, either from the torch or jax packages of PYTHON (default: python3) or from an
# installed toolkit; neither Rust nor a network. Unpacks to @ROOT@. The executed notebook
# and its page are saved in the folder `results`.
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
root=@ROOT@

# @MACHINE@
series=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
case $series in
3.1[0-4]) ;;
*) fail "$python is Python $series, not 3.10 to 3.14: pass another one as first argument" ;;
esac
echo 'int main(void) { return 0; }' | cc -x c -o /dev/null - 2>/dev/null ||
    fail "cc cannot link a program: install a C compiler (Debian and Ubuntu: apt install gcc" \
        "libc6-dev)"
for library in @LIBRARIES@; do
    loads "$library" || fail_without "$library"
done

# The parts' SHA-256 sums.
sums=$(
    cat <<'SUMS'
@SUMS@
SUMS
)

unpack() {
    [ ! -e "$root" ] || fail "$root does not come from these parts: remove it, and start again"
    bad=$(sha256sum --check --quiet <<<"$sums" 2>/dev/null | cut -d: -f1 | tr '\n' ' ') || true
    [ -z "$bad" ] || fail "missing or damaged, copy again: ${bad% }"
    free=$(df -Pk "$(dirname "$root")" | awk 'NR == 2 { print $4 }')
    [ "$free" -ge @KILOBYTES@ ] ||
        fail "$(dirname "$root") has $((free / 1000)) MB free, but $((@KILOBYTES@ / 1000)) MB are" \
            "needed"
    echo "Unpacking to $root"
    rm -rf "$root.unpacking"
    mkdir "$root.unpacking"
    cat part-* | tar --extract --gzip --no-same-owner --directory "$root.unpacking" ||
        fail "cannot unpack to $root.unpacking"
    echo "$sums" >"$root.unpacking/parts.txt"
    mv "$root.unpacking" "$root"
}
[ "$(cat "$root/parts.txt" 2>/dev/null)" = "$sums" ] || unpack

# The project's Python environment: that of PYTHON, with the packages that came along.
tools=$root/project/.tools
"$python" -m venv --without-pip --clear "$tools/venv" || fail "$python cannot create environments"
site=$("$tools/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$root/python/$series" >"$site/carried.pth"
ln -s "$root/python/$series/share" "$tools/venv/share"

# No other variables: some, such as NVCC_CCBIN, would have everything compiled again.
run() {
    env --ignore-environment HOME="${HOME:-$root}" PATH="$root/toolchain/bin:$PATH" \
        LD_LIBRARY_PATH="$LD_LIBRARY_PATH" LANG="${LANG:-C.UTF-8}" TERM="${TERM:-dumb}" \
        ${CUDA_VISIBLE_DEVICES+CUDA_VISIBLE_DEVICES="$CUDA_VISIBLE_DEVICES"} \
        CARGO_HOME="$root/cargo" CARGO_NET_OFFLINE=true \
        CARGO_MANIFEST_DIR="$root/project/xtask" "$tools/kernels/launcher" "$@"
}
message=$(run --help 2>&1) || fail "the programs do not start here: ${message##*$'\n'}"
rm -rf "$root/project/target/notebooks"
status=0
run run-carried || status=$?
mkdir -p results
cp "$root/project/target/notebooks/"* results/ && echo "Copied to $PWD/results" || status=1
exit "$status"
