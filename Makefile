# A thin front: `make run` and `make test` work on a machine that has gcc, make and Python. How things are compiled is
# written in native/CMakeLists.txt, what is installed in pyproject.toml.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CMAKE  := $(shell command -v cmake || echo $(CURDIR)/$(BIN)/cmake)
JOBS   := $(shell nproc 2>/dev/null || echo 2)
THREADED := test_pool test_session test_steer test_devices
SPACE  := $(subst ,, )
SIMT   := test_simt test_small test_gemv test_gemv_steps test_gemm test_attend test_recall
# What is installed to be used here, or to run tests, has no CUDA where there is no GPU: compiling it takes minutes.
NO_CUDA := --config-settings=cmake.define.LMI_CUDA=OFF
IF_GPU = $(if $(shell nvidia-smi -L 2>/dev/null),,$(NO_CUDA))
MODEL  := models/lmi-tiny/lmi-tiny.gguf
TEXT   := models/texts/santa-claus-youth.txt
C_FILES := find native tests \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp' \) -not -name '*_tables.h'
HOUSE  := $(shell find native runtime convert -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py' -o -name CMakeLists.txt 2>/dev/null) pyproject.toml

.PHONY: run test lint format build native-test sanitize python-test aarch64 wheel bench bench-peers ladder fuzz cuda cuda-test cuda-resources clean

run: $(VENV)/.installed
	$(BIN)/lmi run $(MODEL) --prompt $(TEXT) -n 200

test: lint native-test sanitize python-test
	@if command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null; then $(MAKE) --no-print-directory aarch64; \
	else echo "aarch64: 1 skipped (no cross compiler or no qemu-aarch64 here; 'make aarch64' says what to install)"; fi
	@if command -v nvcc >/dev/null; then $(MAKE) --no-print-directory cuda-test; \
	else echo "CUDA machine code: 1 skipped (no nvcc here; the emulator's tests have run)"; fi

# ---- what the rest stands on ------------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "lmi needs Python 3.10 or later; name one with: make PYTHON=python3.12"; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || { echo "no C compiler: apt install gcc"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv does not work here: apt install python3-venv"; exit 1; }

$(VENV)/.installed: $(BIN)/python $(HOUSE)
	$(BIN)/pip install --quiet $(IF_GPU) .
	@touch $@

$(VENV)/.test-tools: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet $(NO_CUDA) '.[test]'
	@touch $@

$(CURDIR)/$(BIN)/cmake: $(BIN)/python
	$(BIN)/pip install --quiet cmake
	@touch $@

# ---- native -----------------------------------------------------------------------------------------------------

build: $(CMAKE)
	$(CMAKE) -S native -B build/native -DLMI_TESTS=ON -DLMI_CUDA=OFF
	$(CMAKE) --build build/native -j $(JOBS)

native-test: build
	cd build/native && $(dir $(CMAKE))ctest --output-on-failure -j $(JOBS)

# The C tests again under AddressSanitizer and UndefinedBehaviorSanitizer, those with threads and the kernels for GPUs under
# ThreadSanitizer, and a minute of each fuzz target.
sanitize: $(CMAKE)
	$(CMAKE) -S native -B build/asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLMI_TESTS=ON -DLMI_FUZZ=ON -DLMI_SANITIZE=address,undefined
	$(CMAKE) --build build/asan -j $(JOBS)
	cd build/asan && $(dir $(CMAKE))ctest --output-on-failure -j $(JOBS) -LE fuzz
	cd build/asan && $(dir $(CMAKE))ctest --output-on-failure -L fuzz -j $(JOBS)
	$(CMAKE) -S native -B build/tsan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLMI_TESTS=ON -DLMI_SANITIZE=thread
	$(CMAKE) --build build/tsan -j $(JOBS) --target $(THREADED) $(SIMT)
	cd build/tsan && $(dir $(CMAKE))ctest --output-on-failure --no-tests=error -j $(JOBS) -R '^($(subst $(SPACE),|,$(strip $(THREADED) $(SIMT))))$$'

fuzz: $(CMAKE)
	$(CMAKE) -S native -B build/asan -DCMAKE_BUILD_TYPE=RelWithDebInfo -DLMI_TESTS=ON -DLMI_FUZZ=ON -DLMI_SANITIZE=address,undefined
	$(CMAKE) --build build/asan -j $(JOBS)
	cd build/asan && $(dir $(CMAKE))ctest --output-on-failure -L fuzz -j $(JOBS)

# liblmi_cuda.so for every GPU, beside liblmi.so in build/cuda; needs nvcc (CUDA 12.0 or later).
cuda: $(CMAKE)
	$(CMAKE) -S native -B build/cuda -DLMI_CUDA=ON -DLMI_CUDA_ARCHS=all
	$(CMAKE) --build build/cuda -j $(JOBS)

cuda-test: cuda-resources $(VENV)/.test-tools
	$(BIN)/python -m pytest tests/packaging/test_cuda_library.py

# Registers and spills of kernels against native/cuda/resources.txt; 'make cuda-resources REWRITE=1' writes the table.
cuda-resources: cuda $(BIN)/python
	$(BIN)/python tests/check_cuda_resources.py build/cuda $(if $(REWRITE),--rewrite)

aarch64: $(CMAKE)
	@command -v aarch64-linux-gnu-gcc >/dev/null && command -v qemu-aarch64 >/dev/null || { echo "needs: apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"; exit 1; }
	$(CMAKE) -S native -B build/aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/cmake/aarch64.cmake -DLMI_TESTS=ON
	$(CMAKE) --build build/aarch64 -j $(JOBS)
	cd build/aarch64 && $(dir $(CMAKE))ctest --output-on-failure -j $(JOBS)

# ---- Python -----------------------------------------------------------------------------------------------------

python-test: build $(VENV)/.test-tools
	LMI_LIBRARY=$(CURDIR)/build/native/liblmi.so PYTHONPATH=$(CURDIR)/runtime $(BIN)/python -m pytest

lint: $(VENV)/.test-tools
	$(BIN)/ruff check .
	$(BIN)/python tests/lint_includes.py
	$(C_FILES) | xargs $(BIN)/clang-format --dry-run -Werror

format: $(VENV)/.test-tools
	$(C_FILES) | xargs $(BIN)/clang-format -i

wheel: $(BIN)/python
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist --config-settings=cmake.define.LMI_CUDA_ARCHS=all .
	@ls dist/*.whl

# ---- measuring --------------------------------------------------------------------------------------------------

bench: $(VENV)/.installed
	$(BIN)/lmi bench $(MODEL) -d 0,1000,100000,1000000

ladder: build
	@echo "== one token: Q4_0 rows times a vector, from plain C to lmi's kernel, beside a plain read of the same bytes"
	@build/native/bench/ladder_decode
	@echo "== many tokens: Q4_0 tiles times a matrix, from plain C to lmi's kernel, beside vpdpbusd alone"
	@build/native/bench/ladder_prefill
	@echo "== lmi's matmul kernels for every type of weights: one token, four, 512"
	@build/native/bench/bench_matmul
	@echo "== lmi's attention for every type of keys and values: one token, 64"
	@build/native/bench/bench_attention

bench-peers: build
	@echo "installs and compiles llama-cpp-python into $(VENV) if it is not there: this takes a while"
	$(MAKE) --no-print-directory $(VENV)/.peers
	LMI_LIBRARY=$(CURDIR)/build/native/liblmi.so PYTHONPATH=$(CURDIR)/runtime $(BIN)/python tests/bench/peers.py

$(VENV)/.peers: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet $(NO_CUDA) '.[peers]'
	@touch $@

clean:
	rm -rf build dist $(VENV)
