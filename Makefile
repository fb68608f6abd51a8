# make help        what there is
# Needs Python >= 3.10, a C compiler and make; everything else goes into .venv at the versions of constraints.txt.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
DATA ?=

BIN := $(VENV)/bin
SOURCES := edgerec training tests benchmarks examples setup.py
SETUP := $(VENV)/.edgerec-setup
CORE := $(VENV)/.edgerec-core
# The rivals' requirements conflict with constraints.txt, so they have an environment of their own.
RIVALS := $(VENV)/rivals
SHOP := demo/shop
PTX := edgerec/engine/gather.ptx
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# Tests and the demo read weights from local folders only.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# onnxruntime uploads telemetry from its import on, unless told not to.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help setup core ptx lint types test check demo bench bench-check dist clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(SETUP) core  ## create .venv and install edgerec in it, editable, with all that development needs

# Build isolation would fetch the newest build tools; these are pinned like the rest.
$(SETUP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "edgerec needs Python >= 3.10, found " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) pip setuptools wheel cython numpy
	$(PIP) --no-build-isolation --editable '.[train,build,rtx,ray,dev]'
	@# Its protobuf schema alone is used, and its requirements conflict with constraints.txt.
	$(PIP) --no-deps tritonclient
	touch $@

core: $(CORE)  ## compile csrc/ and its bindings in place

$(CORE): $(SETUP) setup.py edgerec/_core.pyx edgerec/_native.pyx edgerec/_wordpiece.pyx $(wildcard edgerec/*.pxi csrc/*.c csrc/*.h csrc/*.pxd)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# One PTX for every GPU from sm_75 on. nvcc names its own newest version of PTX; what this kernel needs is in 7.0, which drivers from CUDA 11
# on read. ptxas takes no instruction that the version named does not have.
ptx:  ## compile csrc/gather.cu to edgerec/engine/gather.ptx; needs nvcc
	nvcc -ptx -arch=compute_75 -O3 --fmad=false -Icsrc csrc/gather.cu -o $(PTX).tmp
	sed -i 's/^\.version .*/.version 7.0/' $(PTX).tmp
	mv $(PTX).tmp $(PTX)

lint: $(SETUP)  ## ruff and codespell
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/codespell $(SOURCES) csrc docs *.md

types: $(SETUP) core  ## mypy --strict, and the stub of the C core against the compiled module
	$(BIN)/mypy edgerec training
	$(BIN)/python -m mypy.stubtest edgerec._core edgerec._native edgerec._wordpiece --mypy-config-file pyproject.toml --allowlist tests/stubtest.allow

# A file's tests stay with one worker, which makes their fixtures once; tests/conftest.py has the order. A worker has one core.
test: export OMP_NUM_THREADS := 1
test: $(SETUP) core  ## the test suite, with coverage, on JOBS cores (2)
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term

check: lint types test  ## all that CI runs

demo: $(SETUP) core  ## the whole main job on a generated shop; DATA=folder takes your own
	$(BIN)/python examples/demo.py $(if $(DATA),--data $(DATA))

$(RIVALS)/.edgerec: $(CORE) $(wildcard edgerec/*.py edgerec/*/*.py training/*.py)
	test -x $(RIVALS)/bin/python || $(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip --disable-pip-version-check install --quiet torch==2.13.0 '.[train,build,bench]'
	touch $@

$(SHOP)/student-ort-int8: | $(SETUP) core
	$(BIN)/python examples/demo.py

bench: $(RIVALS)/.edgerec $(SHOP)/student-ort-int8  ## the benchmarks, beside their rivals, on the shop of the demo
	@# A missed target fails the whole, after the rest has run.
	@failed=0; run() { echo "$$ $$*"; "$$@" || failed=1; }; \
	run $(RIVALS)/bin/python benchmarks/bench_import.py; \
	run $(RIVALS)/bin/python benchmarks/bench_topk.py; \
	run $(RIVALS)/bin/python benchmarks/bench_hash.py; \
	run $(BIN)/edgerec bench $(SHOP)/student-int8 --data $(SHOP)/data; \
	run $(RIVALS)/bin/python benchmarks/bench_catalog.py $(SHOP)/student-int8; \
	run $(RIVALS)/bin/python benchmarks/bench_upsert.py $(SHOP)/student-int8; \
	run $(RIVALS)/bin/python benchmarks/bench_native.py $(SHOP)/export --rounds 40; \
	run $(RIVALS)/bin/python benchmarks/bench_engine.py $(SHOP)/student-int8 $(SHOP)/student-ort-int8 --data $(SHOP)/data; \
	run $(RIVALS)/bin/python benchmarks/bench_rank.py --weights $(SHOP)/teacher --data $(SHOP)/data; \
	exit $$failed

bench-check: $(SETUP) core  ## has the native engine become slower? instructions a token under valgrind, against the committed ones
	$(BIN)/python benchmarks/check_instructions.py

dist: $(SETUP)  ## sdist and wheel under dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what the build made; keeps .venv, demo/ and models/
	rm -rf build dist ./*.egg-info edgerec/_core.c edgerec/_native.c edgerec/_wordpiece.c edgerec/*.so .mypy_cache .ruff_cache .pytest_cache .coverage
	rm -f $(CORE)
	find edgerec training tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
