#!/bin/sh
# rust-analyzer asks where the toolchain is, and starts the Cargo that it finds there. Builds do not
# come here: evcxr tells Cargo which rustc to take.
[ "$*" = "--print sysroot" ] && exec echo "${0%/*/*}/sysroot"
exec "$WARM_EVCXR_RUSTC" "$@"
