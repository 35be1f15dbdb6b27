# Every target works first on a fresh machine: what needs the environment depends on its one stamp.
.DEFAULT_GOAL := help
.PHONY: help install demo test check chaos bench gpu e2e docs clean

VENV  := .venv
STAMP := $(VENV)/.stamp
BIN   := $(VENV)/bin

# The first interpreter that really starts, has a version we support and can make environments (Debian splits venv off).
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& { echo $$p; break; }; done)

# Two processes with one thread each: the tests are small, and more threads a process only wait for each other.
# What they compile is kept: each process that a test starts would compile it again.
PYTEST := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest
# Each file goes to one process, so that what its tests share is made once.
IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make the environment .venv (about 3 minutes and 7 GB)

demo: $(STAMP) ## train Medusa on procedural rooms and show what it forgot and transferred (under 10 minutes on 2 cores)
	$(BIN)/python -m medusa_cl.run experiment=demo

test: $(STAMP) ## run the tests (not those that need a GPU)
	$(PYTEST) $(IN_TWO)

check: $(STAMP) ## run ruff, mypy and the tests: what must pass before a change lands
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) $(IN_TWO)

chaos: $(STAMP) ## kill runs and damage files, thousands of times, and look at what survives (about 25 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos_files.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/chaos_kills.py
	HYPOTHESIS_PROFILE=chaos $(PYTEST) -n 2 tests/properties tests/tracking/test_once.py

bench: $(STAMP) ## run every script in benchmarks/
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

gpu: $(STAMP) ## run the GPU tests and a three-minute bf16 demo; needs a CUDA device
	$(BIN)/pytest -m gpu
	$(BIN)/python -m medusa_cl.run experiment=gpu

e2e: $(STAMP) ## click through MLflow's pages in a browser (2 minutes; Chromium is installed where apt can)
	@CHROMIUM="$(CHROMIUM)" sh .ci/chromium
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[e2e]'
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/pytest -m e2e tests/e2e

docs: $(STAMP) ## build the documentation into build/site, without network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## remove the environment, what was built and the tools' caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with the venv module was found. Install one (on Debian or Ubuntu:" \
		"apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@
