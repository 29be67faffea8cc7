# The two commands for a newcomer: `make demo` and `make test`. Both create .venv when it is missing or out of date.
#
#   make setup PYTHON=python3.12              use this interpreter (3.11 or newer)
#   make setup PIP_FLAGS="--index-url ..."    more options for pip
#   make test PYTEST_FLAGS="-m 'not slow'"    more options for pytest
#   make bench-setup BENCH_CMAKE_ARGS="..."   how llama.cpp is compiled

VENV ?= .venv
BIN := $(VENV)/bin
PIP_FLAGS ?=
PYTEST_FLAGS ?=
# A process for each core; the tests of a file stay together, as they share what is costly to make. Files go in the order
# of tests/conftest.py, not that of their number of tests.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The first interpreter that is new enough: ONNX Runtime 1.31, the floor of [cpu], wants Python 3.11.
ifndef PYTHON
PYTHON := $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))) python3)
endif

# Named after what it was made from, so that only a change of content (or of place, or of interpreter) makes it again.
STAMP := $(BIN)/.installed-$(shell { cat pyproject.toml constraints.txt; echo "$(CURDIR) $(PYTHON)"; } | sha256sum | cut -c1-16)

# The native CPU kernels are made again without making the rest.
NATIVE := setup.py $(sort $(wildcard plugins/cpu/*.cpp plugins/cpu/*.h))
NATIVE_STAMP := $(BIN)/.native-$(shell { cat $(NATIVE); echo "$(CURDIR)"; } | sha256sum | cut -c1-16)

# Compiled for this machine, but without AMX: with it, llama.cpp 0.3.36 ends with a failed assertion when it loads this
# architecture's attention (ggml-backend.cpp: cur_backend_id != -1), and a segmentation fault where that is avoided.
NO_AMX := $(if $(filter x86_64,$(shell uname -m)),-mno-amx-tile -mno-amx-int8 -mno-amx-bf16)
BENCH_CMAKE_ARGS ?= -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DCMAKE_C_FLAGS='$(NO_AMX)' -DCMAKE_CXX_FLAGS='$(NO_AMX)'

DEMO_ENGINE := build/tiny-dsv3.engine

.PHONY: help setup browser bench-setup demo test kernels native strict sanitize lint format coverage clean

help:
	@echo "make setup        create $(VENV) with all that demo, tests and linters need"
	@echo "make browser      install Chromium for the tests of HTML reports (Debian or Ubuntu, as root)"
	@echo "make bench-setup  add llama.cpp, compiled here in some minutes, for the benchmarks"
	@echo "make demo         build examples/tiny-dsv3 into an engine and let it write"
	@echo "make test         run the test suite"
	@echo "make kernels      compile all kernels of the TensorRT plugins for all GPUs, and test them; needs none"
	@echo "make native       compile what has changed of the native CPU kernels"
	@echo "make sanitize     test the native CPU kernels under the address and undefined-behaviour sanitizers"
	@echo "make lint         ruff, mypy --strict, the import contracts, and C++ without a warning"
	@echo "make format       apply ruff's fixes and formatting"
	@echo "make coverage     run the test suite and report what it did not execute"
	@echo "make clean        remove $(VENV) and all that was built"

setup: $(STAMP) $(NATIVE_STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dsv3export: make setup needs Python 3.11 or newer, got " + sys.version.split()[0] + "; name one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt \
		--no-build-isolation -e ".[cpu,build,rtx,kernels,plot,serve,test,dev]"
	@touch $@ $(NATIVE_STAMP)

# An installation just made has compiled them.
$(NATIVE_STAMP): | $(STAMP)
	@[ -e $@ ] || $(BIN)/python setup.py build_ext --inplace
	@touch $@

bench-setup: setup
	CMAKE_ARGS="$(BENCH_CMAKE_ARGS)" $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) \
		-c constraints.txt -c benchmarks/constraints.txt --no-binary llama-cpp-python -e ".[bench]"

browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || { \
			echo "make browser needs apt-get and root; install Chromium by other means" >&2; exit 1; }; \
		apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

demo: setup
	$(BIN)/dsv3export build examples/tiny-dsv3 -o $(DEMO_ENGINE) --force
	$(BIN)/dsv3export run $(DEMO_ENGINE) --prompt "And it came to pass in" --max-new-tokens 64

test: setup
	$(PYTEST) $(PYTEST_FLAGS)

kernels: setup
	$(BIN)/dsv3export kernels compile
	$(BIN)/dsv3export kernels test

# Without `setup`: a change of the sources does not need a new environment.
native:
	REQUIRED=1 $(BIN)/python setup.py build_ext --inplace

# In a place of its own: other flags, and every warning an error.
strict:
	@command -v $${CXX:-c++} >/dev/null || { echo "no C++ compiler: plugins/cpu is not checked"; exit 0; }; \
		REQUIRED=1 WERROR=1 $(BIN)/python setup.py --quiet build_ext --build-lib build/strict --build-temp build/strict

# Python was not compiled with them: they are loaded before it, and its own leaks are none of ours. Afterwards the usual
# library is put back.
SANITIZED := ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)"
sanitize:
	SANITIZE=1 $(MAKE) native
	SANITIZE=1 $(SANITIZED) $(BIN)/python -m pytest tests/plugins/cpu tests/runtime/test_cpu_kernels.py \
		$(PYTEST_FLAGS); status=$$?; $(MAKE) native; exit $$status

lint: setup strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: setup
	$(BIN)/python -m coverage run -m pytest $(PYTEST_FLAGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
