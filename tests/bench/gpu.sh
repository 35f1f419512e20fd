#!/bin/bash
# Everything that wants a GPU, in one go (meant to take less than nine minutes): the kernels' results, a sanitizer, then speed and memory. What it prints belongs
# in native/cuda/MEASURED.md, by hand, with the date, the commit, the GPU and the driver.
#
#   tests/bench/gpu.sh [MODELS of gpu.py ...]
#
# Needs nvcc, CMake, and a Python with what tests and converter need (pip install '.[test]', or PYTHON=...).
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .) || { echo "no GPU answers: nvidia-smi"; exit 6; }
echo "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)"

cmake -S native -B build/gpu -DLMI_CUDA=ON -DLMI_CUDA_ARCHS="$arch" -DLMI_TESTS=ON > build-gpu.log 2>&1 \
  && cmake --build build/gpu -j "$(nproc)" >> build-gpu.log 2>&1 || { tail -20 build-gpu.log; exit 1; }
rm -f build-gpu.log
export LMI_LIBRARY=$PWD/build/gpu/liblmi.so PYTHONPATH=$PWD/runtime:$PWD/convert
export LMI_CUDA_LIBRARY=$(find "$PWD/build/gpu" -name liblmi_cuda.so | head -1)

echo "== results: every family and the shipped model, against the CPU"
$PYTHON -m pytest -q tests/convert/test_families_cuda.py tests/convert/test_recall_cuda.py -k gpu || failed=1

echo "== compute-sanitizer on the shipped model"
for tool in memcheck racecheck; do
  if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m lmi run models/lmi-tiny/lmi-tiny.gguf --device cuda --text \
      "Once upon a time there was a man who had a dog" -n 8 --seed 1 -q > sanitizer.log 2>&1
    code=$?
    grep -E "ERROR SUMMARY|RACECHECK SUMMARY" sanitizer.log || tail -3 sanitizer.log
    [ $code -eq 9 ] && failed=1
    rm -f sanitizer.log
  else
    echo "$tool: skipped, no compute-sanitizer here"
  fi
done

echo "== speed"
$PYTHON tests/bench/gpu.py "$@" || failed=1
exit ${failed:-0}
