# The verbs of this repository. `make demo` and `make test` need Python >= 3.10, g++ and make, and set up the rest themselves.
#
#   make demo    find a face in a photograph with an unmodified detector on these kernels
#   make test    every test that needs no GPU: CPU kernels, emulated CUDA kernels, C++ tests, lint
#   make dev     environment with all tools, everything built in place, pre-commit hooks installed
#   make cpp     C++ tests only, under ASan and UBSan
#   make bench   time the operators against torchvision
#   make lint    formatters, linters, type checker, source invariants, workflow check
#   make clean   remove what was built (the environment stays)
#
# PYTHON=python3.12 chooses the interpreter, VENV=dir the environment, MAX_JOBS=n the parallel compilations.
# ARGS='...' is handed on to demo and bench: make demo ARGS='--image photo.jpg --out found.png'.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export PYTHON VENV
PY := $(VENV)/bin/python
# Incremental: CMake and ninja compile only what changed.
BUILD := $(PY) setup.py --quiet build_ext --inplace

.PHONY: help demo test dev cpp bench lint clean
help:
	@sed -n 's/^#   //p' Makefile

demo:
	@scripts/bootstrap.sh demo
	@$(BUILD)
	@$(PY) -m cvkernels demo $(ARGS)

test:
	@scripts/bootstrap.sh test
	@CVKERNELS_BUILD_EMULATED=1 $(BUILD)
	@scripts/test.sh

dev:
	@scripts/bootstrap.sh dev
	@CVKERNELS_BUILD_EMULATED=1 $(PY) -m pip install --no-build-isolation --no-deps -e .
	@$(PY) -m pre_commit install

cpp:
	@scripts/bootstrap.sh test
	@CVKERNELS_TEST_STEPS='^c[+][+]$$' scripts/test.sh

bench:
	@scripts/bootstrap.sh test
	@$(BUILD)
	@$(PY) -m cvkernels bench $(ARGS)

lint:
	@scripts/bootstrap.sh dev
	@PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m pre_commit run --all-files

clean:
	rm -rf build dist *.egg-info cvkernels/*.so
