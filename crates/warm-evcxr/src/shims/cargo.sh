#!/bin/sh
# Stands before Cargo in a kernel's build folder, for five things.
#
# The notebook runs the versions of the project's Cargo.lock. evcxr resolves an empty manifest at
# each start, which empties the folder's lock file; so whenever the manifest has changed, the
# project's is put there again. Cargo keeps of it what the manifest asks for, and adds the versions
# of what else it asks for.
#
# To explain some errors, evcxr has Cargo check what it has just built, and checking compiles all
# dependencies once more, in a way of its own. A build says the same and finds them compiled.
#
# A panic tells what a reader needs: below each cell's code stands what sets that up.
#
# rust-analyzer calls the Cargo in Cargo's home, which calls the one beside the sysroot that it is
# told. Where there is none it comes here, and wants the same.
#
# A build that is killed leaves the file .building behind: the folder is then not used again.
case "$*" in
    "metadata "*" --manifest-path "*) exec "${0%/*/*}/sysroot/bin/cargo" "$@" ;;
esac
[ "$(pwd -P)" = "$(cd "$EVCXR_TMPDIR" && pwd -P)" ] || exec "$WARM_EVCXR_CARGO" "$@"
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
# Named as evcxr names it, be it a link: its child process finds no library where a path has a space.
CARGO_TARGET_DIR="$EVCXR_TMPDIR/target" CARGO_BUILD_BUILD_DIR="$EVCXR_TMPDIR/target" \
    "$WARM_EVCXR_CARGO" "$@"
status=$?
rm -f .building
exit $status
