#!/bin/sh
# run.sh - builds the kernels for AArch64 and runs their tests under qemu-user (NEON level)
# Exit 0: all pass; 77: the cross compiler or the emulator is missing; else failed. OUT = build folder.
set -e
cc=${CROSS_CC:-aarch64-linux-gnu-gcc}
qemu=${QEMU:-qemu-aarch64}
out=${OUT:-build/cross}
command -v "$cc" >/dev/null || { echo "no $cc"; exit 77; }
command -v "$qemu" >/dev/null || qemu=$(command -v "$qemu-static") || { echo "no $qemu"; exit 77; }
mkdir -p "$out"
k=engine/kernels
"$cc" -std=c11 -D_GNU_SOURCE -O2 -static -pthread -Itests/cross -I. -Wall -Wextra -ffp-contract=off \
    $k/kernels.c $k/pack.c $k/gemm.c $k/attention.c $k/portable.c $k/neon.c \
    base/err.c base/threads.c base/rng.c base/clock.c tests/test_kernels.c tests/test_attention.c \
    tests/support_amx.c tests/cross/main.c -lm -o "$out/test_kernels"
"$qemu" "$out/test_kernels"
