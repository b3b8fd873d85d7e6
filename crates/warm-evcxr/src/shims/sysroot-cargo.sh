#!/bin/sh
# The Cargo that rust-analyzer finds in evcxr: it tells of the crates near the cells alone.
case " $* " in
    *" metadata "*) exec "$WARM_EVCXR" metadata "$WARM_EVCXR_CARGO" "$@" ;;
esac
exec "$WARM_EVCXR_CARGO" "$@"
