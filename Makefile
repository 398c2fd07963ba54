# make demo | demo-tiny | test | test-portable | test-oldest | test-real | test-kernels | coverage | mutate | fuzz |
# faults | audit | lint | wheel | test-wheel | benchmark | benchmark-sweep | benchmark-train | benchmark-gpu: each but the
# last sets up what it needs in $(VENV), which is quick when nothing has changed. What is compiled must compile; with
# BICO_BUILD=OFF, nothing is and no compiler is needed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATA ?= synthetic
OUT ?= out/demo-$(notdir $(patsubst %/,%,$(DATA)))
CASES ?= 10000
SEED ?=
KILLS ?= 50
BICO_BUILD ?= ON
export BICO_BUILD

BIN := $(VENV)/bin
NATIVE := CMakeLists.txt pyproject.toml build_backend/bico_build.py csrc/torch/locate.py $(shell find csrc python_tests/emulator -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CXX_FILES := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE)) python_tests/csrc/races.cpp

.PHONY: setup demo demo-tiny test test-portable test-oldest test-real test-kernels coverage mutate fuzz faults audit lint format wheel test-wheel benchmark benchmark-sweep benchmark-train benchmark-gpu clean FORCE

setup: $(VENV)/installed

# A suitable torch of the environment, if there is one, or else of $(PYTHON) is used as it is (with CUDA, say); otherwise
# $(TORCH) goes into the environment.
$(VENV)/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "bico-ext needs Python 3.10 or newer; set PYTHON=..." >&2; exit 1; }
	@if $(BIN)/python csrc/torch/locate.py >/dev/null 2>&1; then :; \
	elif $(PYTHON) csrc/torch/locate.py >/dev/null 2>&1; then \
	  $(PYTHON) -m venv --system-site-packages $(VENV); \
	else \
	  $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --progress-bar off --quiet '$(TORCH)'; \
	fi
	@touch $@

# What was asked for last: another value sets up anew.
$(VENV)/BICO_BUILD: $(VENV)/created FORCE
	@echo '$(BICO_BUILD)' | cmp -s - $@ || echo '$(BICO_BUILD)' >$@

ifeq ($(BICO_BUILD),OFF)
TO_BUILD := 'scikit-build-core>=0.11'
else
TO_BUILD := 'scikit-build-core>=0.11' 'pybind11>=2.13' 'cmake>=3.25' 'ninja>=1.11'
EMULATOR := -C cmake.define.BICO_EMULATOR=ON
endif
EDITABLE := --no-build-isolation -C build-dir='build/{wheel_tag}' -C cmake.define.BICO_CUDA=AUTO $(EMULATOR) -e

$(VENV)/requirements: pyproject.toml $(VENV)/created $(VENV)/BICO_BUILD
	@test '$(BICO_BUILD)' = OFF || command -v $${CXX:-c++} >/dev/null || \
	  { echo "bico-ext compiles C++: install g++ 12 or newer (on Debian: apt install g++), or set CXX; with" \
	    "BICO_BUILD=OFF, nothing is compiled." >&2; exit 1; }
	$(BIN)/pip install --progress-bar off --quiet $(TO_BUILD)
	@touch $@

# Editable: changes to Python files take effect at once, new folders are found after another installation, and changes to
# C++ files recompile what they touch.
$(VENV)/installed: $(NATIVE) $(wildcard bico_ext/*/__init__.py) $(VENV)/requirements
	$(BIN)/pip install --progress-bar off --quiet $(EDITABLE) '.[test,lint]'
	@touch $@

# A pre-trained Llama learns invented people and is asked in both directions.
demo: setup
	@if $(BIN)/bico fetch-model smollm2-135m; then \
	  $(BIN)/bico compare --model smollm2-135m --data invented --systems ntp bico permute --epochs 9 \
	    --batch-size 16 --max-new-tokens 20 --curve-questions 10 --output-dir out/demo --resume; \
	else \
	  echo "make demo: there is no pre-trained model, so a tiny one runs instead (make demo-tiny)" >&2; \
	  $(MAKE) demo-tiny; \
	fi

demo-tiny: setup
	$(BIN)/bico compare --data $(DATA) --output-dir $(OUT) --resume

# One worker per core with one thread each: most tests are too small for two threads.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

# What runs the op inside a model, with its portable backend. Where nothing is compiled, `make test` does all of that.
test-portable: setup
	BICO_BACKEND=portable OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist worksteal \
	  python_tests/models python_tests/training python_tests/probing

# What touches transformers most, with the oldest version that pyproject.toml allows; `make test` has the newest.
test-oldest: setup build/oldest/installed
	PYTHONPATH=$(CURDIR)/build/oldest OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist worksteal \
	  python_tests/models/test_attach.py python_tests/models/test_families.py python_tests/generation/test_greedy.py \
	  python_tests/training/test_trainer.py

build/oldest/installed: pyproject.toml $(VENV)/requirements
	rm -rf build/oldest
	$(BIN)/pip install --progress-bar off --quiet --target build/oldest \
	  "$$(sed -n 's/^  "\(transformers\)>=\([0-9.]*\),.*/\1==\2.*/p' pyproject.toml)"
	@touch $@

# Known vulnerabilities of both ends of what pyproject.toml allows: the oldest versions, and those that are installed. The
# database is on the network, and what cannot be looked up fails.
audit: setup
	$(BIN)/pip install --progress-bar off --quiet pip-audit
	mkdir -p build
	sed -n '/^dependencies/,/^]/s/^ *"\([a-z]*\)>=\([0-9.]*\).*/\1==\2/p' pyproject.toml >build/oldest.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r build/oldest.txt
	$(BIN)/pip-audit --strict --local --skip-editable

# The tests that need a pre-trained model, which is downloaded once into the user's cache folder.
test-real: setup
	$(BIN)/bico fetch-model smollm2-135m
	$(BIN)/python -m pytest python_tests/real

# The op's tests with every instruction set of this CPU: of the build that is installed, and of one under
# AddressSanitizer and UndefinedBehaviorSanitizer, workspaces full of NaN and fenced, with AMX's tiles in software and the
# CUDA kernels under the emulator. The CPU kernels' threads under ThreadSanitizer. Then the CUDA kernels' machine code.
test-kernels: setup build/sanitized/installed build/races $(VENV)/cuda-checks
	build/races
	$(BIN)/python python_tests/csrc/every_instruction_set.py
	$(BIN)/python python_tests/csrc/every_instruction_set.py --package build/sanitized -k 'not memory'
	$(BIN)/python python_tests/csrc/cuda_static_checks.py
	@if command -v nvcc >/dev/null; then $(MAKE) build/with-cuda/installed; \
	  else echo "== no build with CUDA: nvcc is not on PATH"; fi

build/sanitized/installed: $(NATIVE) $(VENV)/requirements
	rm -rf build/sanitized
	$(BIN)/pip install --progress-bar off --quiet --no-build-isolation --no-deps --target build/sanitized \
	  -C build-dir=build/sanitized-objects -C cmake.define.BICO_SANITIZE=ON -C cmake.define.BICO_EMULATE_AMX=ON \
	  -C cmake.define.BICO_EMULATOR=ON -C cmake.define.BICO_CUDA=OFF .
	@touch $@

# Without torch, whose threads the sanitizer does not understand. -O1, as the watched code is slow in any case.
build/races: $(NATIVE) python_tests/csrc/races.cpp
	mkdir -p build
	$${CXX:-c++} -std=c++20 -O1 -g1 -fsanitize=thread -mavx2 -mfma -mf16c -Wall -Wextra -Wno-psabi \
	  -Wno-maybe-uninitialized -Icsrc python_tests/csrc/races.cpp csrc/cpu/attention.cpp csrc/cpu/workspace.cpp \
	  csrc/cpu/isa/avx2.cpp -o $@

# NVIDIA's compiler and disassembler, which no other target needs.
$(VENV)/cuda-checks: $(VENV)/installed
	$(BIN)/pip install --progress-bar off --quiet $(EDITABLE) '.[cuda-checks]'
	@touch $@

# A build with CUDA kernels works where torch has no CUDA. For one architecture: the machine code of all was looked at.
build/with-cuda/installed: $(NATIVE) $(VENV)/requirements
	rm -rf build/with-cuda
	$(BIN)/pip install --progress-bar off --quiet --no-build-isolation --no-deps --target build/with-cuda \
	  -C build-dir=build/with-cuda-objects -C cmake.define.BICO_CUDA=ON \
	  -C cmake.define.BICO_CUDA_ARCHITECTURES=90-real .
	$(BIN)/python python_tests/csrc/import_with_cuda.py build/with-cuda
	@touch $@

# Random problems, CASES of them for each instruction set, for the other backends and for the CUDA kernels under the
# emulator; the same command continues. out/fuzz/results.json has the counts, the seed and the failures.
fuzz: setup
	$(BIN)/python python_tests/ops/fuzz.py --cases $(CASES) $(addprefix --seed ,$(SEED))

# Kills commands at random moments, fills the disk and damages files; SEED=... repeats a run.
faults: setup
	PYTHONPATH=python_tests OMP_NUM_THREADS=1 $(BIN)/python python_tests/faults/inject_faults.py --kills $(KILLS) \
	  $(if $(SEED),--seed $(SEED)) --output out/faults.json

# Which lines the tests run: of the package, by `make test`; of the kernels, by the op's tests with every instruction
# set, AMX's tiles in software and the CUDA kernels under the emulator. pyproject.toml and gcovr.cfg say how many must.
coverage: setup build/covered/installed $(VENV)/coverage-tools
	rm -rf build/coverage && mkdir -p build/coverage
	find build/covered-objects -name '*.gcda' -delete
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --dist worksteal --cov --cov-report json \
	  --cov-report term-missing:skip-covered
	$(BIN)/python python_tests/csrc/every_instruction_set.py --package build/covered --covered
	$(BIN)/gcovr --config python_tests/csrc/gcovr.cfg

build/covered/installed: $(NATIVE) $(VENV)/requirements
	rm -rf build/covered build/covered-objects
	$(BIN)/pip install --progress-bar off --quiet --no-build-isolation --no-deps --target build/covered \
	  -C build-dir=build/covered-objects -C cmake.define.CMAKE_CXX_FLAGS=--coverage \
	  -C cmake.define.BICO_EMULATE_AMX=ON -C cmake.define.BICO_EMULATOR=ON -C cmake.define.BICO_CUDA=OFF .
	@touch $@

$(VENV)/coverage-tools: $(VENV)/installed
	$(BIN)/pip install --progress-bar off --quiet $(EDITABLE) '.[coverage]'
	@touch $@

# How many changed operators and numbers the tests notice; see python_tests/mutation/mutate.py. May be interrupted.
mutate: setup $(VENV)/mutation-tools
	OMP_NUM_THREADS=1 $(BIN)/python python_tests/mutation/mutate.py

$(VENV)/mutation-tools: $(VENV)/installed
	$(BIN)/pip install --progress-bar off --quiet $(EDITABLE) '.[mutation]'
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# A wheel of this machine's Python. Its objects are its own: those of $(VENV) know the emulator.
wheel: $(VENV)/requirements
	$(BIN)/pip wheel --progress-bar off --quiet --no-build-isolation --no-deps --wheel-dir dist \
	  -C build-dir=build/wheel-objects .
	@ls -t dist/*.whl | head -n 1

# The op's tests on that wheel, in fresh environments with the oldest torch and the newest, which are downloaded.
test-wheel: wheel
	$(BIN)/python python_tests/project/try_wheel.py "$$(ls -t dist/*.whl | head -n 1)" 'torch==2.11.*' torch

benchmark: setup
	$(BIN)/python benchmarks/attention.py --output-dir out/benchmark

benchmark-sweep: setup
	$(BIN)/python benchmarks/attention.py --cases --sweep --output-dir out/benchmark-sweep

benchmark-train: setup
	$(BIN)/python benchmarks/train_step.py --output-dir out/benchmark-train

# On a machine with a GPU and a torch with CUDA in $(PYTHON); see benchmarks/gpu.sh --help.
benchmark-gpu:
	PYTHON="$(PYTHON)" bash benchmarks/gpu.sh

clean:
	rm -rf build $(VENV)
