#!/usr/bin/env bash
# A wrapper for nvcc. candle's kernels for quantized networks and mixtures of experts take most of
# the compile time but are not used here: they are replaced by functions that print an error and
# abort. All other calls are passed on.
set -euo pipefail
source=${!#}
object=
previous=
for argument in "$@"; do
    [ "$previous" = -o ] && object=$argument
    previous=$argument
done
case " $* " in
*" -c "*)
    case $source in
    *moe/*.cu | *mmvq_gguf.cu | *mmq_gguf/*.cu)
        {
            # One file defines all functions; the others stay empty.
            if [ "${source##*/}" = mmvq_gguf.cu ]; then
                printf '#include <stdio.h>\n#include <stdlib.h>\n'
                grep -oE 'pub fn [A-Za-z0-9_]+' "$CARGO_MANIFEST_DIR/src/ffi.rs" |
                    cut -d' ' -f3 | sort -u |
                    while read -r name; do
                        printf 'void %s(void) ' "$name"
                        printf '{ fputs("%s: left out of this build\\n", stderr); abort(); }\n' \
                            "$name"
                    done
            fi
        } | cc -w -O1 -fPIC -c -x c - -o "$object"
        exit
        ;;
    esac
    ;;
esac
exec "@NVCC@" "$@"
