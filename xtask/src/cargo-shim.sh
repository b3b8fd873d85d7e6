#!/bin/sh
# Stands before Cargo in a kernel's build folder, for two things.
#
# The notebook runs the versions of the workspace's Cargo.lock. evcxr resolves an empty manifest at each start, which
# empties the folder's lock file; so whenever the manifest has changed, the workspace's is put there again. Cargo keeps
# of it what the manifest asks for, and adds the versions of what else it asks for.
#
# A build that is killed leaves the file .building behind: the folder is then not used again.
[ "$PWD" = "$EVCXR_TMPDIR" ] || exec "$MNIST_NOTEBOOK_CARGO" "$@"
if ! cmp -s Cargo.toml .locked-manifest; then
    cp "$MNIST_NOTEBOOK_LOCK" Cargo.lock && cp Cargo.toml .locked-manifest
fi
: > .building
"$MNIST_NOTEBOOK_CARGO" "$@"
status=$?
rm -f .building
exit $status
