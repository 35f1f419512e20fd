#!/bin/bash
# Everything that wants a GPU, in one go: the kernels' results, a sanitizer, then speed and memory, then a long text for the time that is left.
# What it prints belongs in native/cuda/MEASURED.md, by hand, with the date, the commit, the GPU and the driver.
#
#   [SECONDS_IN_ALL=540] tests/bench/gpu.sh [MODELS of gpu.py ...]
#
# Needs nvcc, CMake, a C compiler, and a Python with what is listed below (pip install '.[test]', or PYTHON=...). Downloads nothing.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-python3}
SECONDS_IN_ALL=${SECONDS_IN_ALL:-540}
export PATH=$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1
failed=0
left() { echo $((SECONDS_IN_ALL - SECONDS > 1 ? SECONDS_IN_ALL - SECONDS : 1)); }
# At most so many seconds, and not longer than there is time at all: limited 60 COMMAND ...
limited() {
  local most=$1 n
  n=$(left)
  shift
  timeout --kill-after=10 $((n < most ? n : most)) "$@"
}

command -v nvidia-smi > /dev/null || { echo "no GPU answers: there is no nvidia-smi"; exit 6; }
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d '. ')
[[ $arch =~ ^[0-9]+$ ]] || { echo "no GPU answers: nvidia-smi says: $arch"; exit 6; }
for tool in nvcc cmake cc c++; do
  command -v $tool > /dev/null || { echo "there is no $tool"; exit 6; }
done
"$PYTHON" - <<'PYTHON' || exit 6
import importlib.util, sys
names = "numpy cffi click jinja2 gguf pytest torch transformers tokenizers safetensors".split()
missing = [name for name in names if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}")
PYTHON
echo "commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -1)"

mkdir -p build/gpu
log=build/gpu/build.log
{ cmake -S native -B build/gpu -DLMI_CUDA=ON -DLMI_CUDA_ARCHS="$arch" && cmake --build build/gpu -j "$(nproc)"; } > $log 2>&1 \
  || { tail -20 $log; exit 1; }
export LMI_LIBRARY=$PWD/build/gpu/liblmi.so PYTHONPATH=$PWD/runtime:$PWD/convert${PYTHONPATH:+:$PYTHONPATH}
LMI_CUDA_LIBRARY=$(find "$PWD/build/gpu" -name liblmi_cuda.so | head -1)
export LMI_CUDA_LIBRARY
[ -f "$LMI_LIBRARY" ] && [ -n "$LMI_CUDA_LIBRARY" ] || { echo "the build made no library: see $log"; exit 1; }
echo "built for sm_$arch in $SECONDS s"

echo "== results: every family and the shipped model, against the CPU"
limited 180 "$PYTHON" -m pytest -q tests/convert/test_families_cuda.py tests/convert/test_recall_cuda.py -k gpu --durations=3 || failed=1
echo "($SECONDS s)"

echo "== speed"
limited 300 "$PYTHON" tests/bench/gpu.py --soak 0 --seconds $(($(left) - 120)) "$@" || failed=1
echo "($SECONDS s)"

echo "== compute-sanitizer on the shipped model"
for tool in memcheck racecheck; do
  if ! command -v compute-sanitizer > /dev/null; then
    echo "$tool: skipped, no compute-sanitizer here"
    continue
  fi
  limited 60 compute-sanitizer --tool $tool --error-exitcode 9 "$PYTHON" -m lmi run models/lmi-tiny/lmi-tiny.gguf \
    --device cuda --text "Once upon a time there was a man who had a dog" -n 8 --seed 1 -q > build/gpu/$tool.log 2>&1
  code=$?
  if [ $code -eq 124 ]; then
    echo "$tool: not finished in the time there was"
  else
    grep -E "ERROR SUMMARY|RACECHECK SUMMARY" build/gpu/$tool.log || tail -5 build/gpu/$tool.log
    [ $code -eq 0 ] || { echo "$tool: exit code $code, see build/gpu/$tool.log"; failed=1; }
  fi
done
echo "($SECONDS s)"

echo "== a long text"
limited 600 "$PYTHON" tests/bench/gpu.py --seconds $(($(left) - 15)) none || failed=1
echo "($SECONDS s)"
exit $failed
