#!/bin/sh
# llama.sh - builds llama.cpp and our driver for the scene `llama`; prints the driver's path
#
#   LLAMA_SOURCE=PATH tests/bench/llama.sh       PATH: llama.cpp's tree, or the archive below
#
# Without LLAMA_SOURCE the PyPI source package of llama-cpp-python (which carries llama.cpp) is
# downloaded. Everything lies in build/bench/llama; what is there is not built again. Ends with one
# line `skip: REASON` on stdout where it cannot be built.
set -eu
version=0.3.36
sum=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
site=https://files.pythonhosted.org/packages/ec/e9/e7de2b0463ea3ffbf0ede6cb21b58c1258a8f6521aae45ca773a59fe7cf3
folder=build/bench/llama
driver=$folder/driver
source=${LLAMA_SOURCE:-}
skip() { echo "skip: $*"; exit 0; }

mkdir -p "$folder"
if [ ! -e "$folder/done" ]; then
    command -v cmake >/dev/null || skip "no cmake"
    command -v c++ >/dev/null || skip "no C++ compiler"
    if [ -z "$source" ]; then
        source=$folder/source.tar.gz
        [ -e "$source" ] || curl -fsS -m 300 -o "$source.part" "$site/llama_cpp_python-$version.tar.gz" 2>/dev/null ||
            skip "no LLAMA_SOURCE and no download of llama-cpp-python $version"
        [ -e "$source" ] || mv "$source.part" "$source"
        echo "$sum  $source" | sha256sum -c --quiet >/dev/null 2>&1 || skip "$source: not the expected archive"
    fi
    if [ -f "$source" ]; then
        tar -xzf "$source" -C "$folder" || skip "$source: not a gzipped tar archive"
        source=$folder/llama_cpp_python-$version/vendor/llama.cpp
    fi
    [ -f "$source/include/llama.h" ] || skip "$source: no include/llama.h"
    {
        cmake -S "$source" -B "$folder/tree" -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
            -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
            -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF &&
            cmake --build "$folder/tree" -j "$(getconf _NPROCESSORS_ONLN)"
    } >"$folder/build.log" 2>&1 || skip "llama.cpp did not build ($folder/build.log)"
    mkdir -p "$folder/include"
    cp "$source"/include/*.h "$source"/ggml/include/*.h "$folder/include"
    : >"$folder/done"
fi
if [ ! "$driver" -nt tests/bench/llama/driver.c ]; then
    {
        cc -std=c11 -D_GNU_SOURCE -O2 -I"$folder/include" -c tests/bench/llama/driver.c -o "$folder/driver.o" &&
            c++ -o "$driver" "$folder/driver.o" "$folder/tree/src/libllama.a" "$folder/tree/ggml/src/libggml.a" \
                "$folder/tree/ggml/src/libggml-cpu.a" "$folder/tree/ggml/src/libggml-base.a" -fopenmp -ldl -lpthread -lm
    } >"$folder/driver.log" 2>&1 || skip "the driver did not build ($folder/driver.log)"
fi
echo "$driver"
