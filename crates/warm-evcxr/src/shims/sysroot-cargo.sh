#!/bin/sh
# The Cargo that evcxr's rust-analyzer finds. Its metadata lists only crates near the cells.
case " $* " in
    *" metadata "*) exec "$WARM_EVCXR" metadata "$WARM_EVCXR_CARGO" "$@" ;;
esac
exec "$WARM_EVCXR_CARGO" "$@"
