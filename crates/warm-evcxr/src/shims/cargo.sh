#!/bin/sh
# Wraps Cargo in a kernel's build folder, for six purposes:
#
# 1. Cells use the versions in the project's Cargo.lock. evcxr resolves an empty manifest at each
#    start, which empties the folder's lock file. So whenever the manifest has changed, the
#    project's lock file is copied again; Cargo prunes it and adds what is missing.
#
# 2. To explain some errors, evcxr runs `cargo check` on what it has just built, which would check
#    all dependencies again. `cargo build` reports the same errors and finds them compiled.
#
# 3. Panics are readable: a panic hook is appended to each cell's code.
#
# 4. rust-analyzer calls the Cargo in Cargo's home, which calls the one in the sysroot that it is
#    given. If Cargo's home has none, it calls this one, which must give the same answer.
#
# 5. A killed build leaves the file .building behind, so that the folder is not reused.
#
# 6. Features of dependencies are turned on in builds that have these dependencies.
case "$*" in
    "metadata "*" --manifest-path "*) exec "${0%/*/*}/sysroot/bin/cargo" "$@" ;;
esac
[ "$(pwd -P)" = "$(cd "$EVCXR_TMPDIR" && pwd -P)" ] || exec "$WARM_EVCXR_CARGO" "$@"
if [ -n "$WARM_EVCXR_FEATURES" ]; then
    "$WARM_EVCXR" features || exit
fi
if [ -f "$WARM_EVCXR_LOCK" ] && ! cmp -s Cargo.toml .locked-manifest; then
    cp "$WARM_EVCXR_LOCK" Cargo.lock && cp Cargo.toml .locked-manifest
fi
if [ "$1" = check ]; then
    shift
    set -- build "$@"
fi
if [ "$1" = build ] && ! grep -q WARM_EVCXR_PANIC_HOOK src/lib.rs; then
    cat "${0%/*}/panic-hook.rs" >> src/lib.rs
fi
: > .building
# EVCXR_TMPDIR may be a link. Keep it as it is: evcxr finds no library in a path with a space.
CARGO_TARGET_DIR="$EVCXR_TMPDIR/target" CARGO_BUILD_BUILD_DIR="$EVCXR_TMPDIR/target" \
    "$WARM_EVCXR_CARGO" "$@"
status=$?
rm -f .building
exit $status
