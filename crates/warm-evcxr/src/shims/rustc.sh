#!/bin/sh
# rust-analyzer asks for the sysroot and starts the Cargo that it finds there. Builds do not use
# this wrapper: evcxr tells Cargo which rustc to use.
[ "$*" = "--print sysroot" ] && exec echo "${0%/*/*}/sysroot"
exec "$WARM_EVCXR_RUSTC" "$@"
