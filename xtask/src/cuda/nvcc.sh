#!/usr/bin/env bash
# In front of nvcc: candle's kernels for quantized networks and mixtures of experts take most of the time that its
# kernels take to compile, and nothing here calls them. They become functions that say so and stop the program; every
# other call goes through.
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
            # All of them once, for the linker.
            if [ "${source##*/}" = mmvq_gguf.cu ]; then
                printf '#include <stdio.h>\n#include <stdlib.h>\n'
                grep -oE 'pub fn [A-Za-z0-9_]+' "@FFI@" | cut -d' ' -f3 | sort -u | while read -r name; do
                    printf 'void %s(void) { fputs("%s: left out of this build\\n", stderr); abort(); }\n' "$name" "$name"
                done
            fi
        } | cc -w -O1 -fPIC -c -x c - -o "$object"
        exit
        ;;
    esac
    ;;
esac
exec "@NVCC@" "$@"
