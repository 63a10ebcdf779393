# make help lists the targets. Everything runs in .venv, which the first call sets up.

PYTHON ?= python3
WORKERS ?= 2
SECONDS ?= 60
# Options for the installation of torch only. PyPI's Linux wheel of torch brings gigabytes of CUDA
# libraries: to avoid them, point pip at an index or a folder with CPU wheels, for example
# `make test TORCH_PIP_FLAGS="--find-links DIR"`. 2.13.0+cpu satisfies the pin and is preferred.
TORCH_PIP_FLAGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
DATA := src/odegrad/data/hudson_bay_hare_lynx.csv
TORCH := $(shell sed -n '/^torch==/p' constraints.txt)

# One thread per worker: with more, the workers fight for the cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test bench paper mutants fuzz counts exhaustive lint format types contracts clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(STAMP) ## create .venv and install the pinned packages

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@# torch first and by its exact version: left to the resolver, a bare "torch" may become
	@# another build of it, with gigabytes of CUDA packages.
	$(BIN)/python -m pip install --quiet -c constraints.txt $(TORCH_PIP_FLAGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[test]"
	@touch $@

demo: $(STAMP) ## fit the hare and lynx data twice, into demo/
	@mkdir -p demo
	rm -rf demo/mlp demo/lotka-volterra
	$(BIN)/odegrad fit $(DATA) --time year --state hare,lynx --out demo/mlp
	$(BIN)/odegrad fit $(DATA) --time year --state hare,lynx --model lotka-volterra --holdout 0 \
	    --out demo/lotka-volterra

test: $(STAMP) ## run the tests and the doctests
	$(PYTEST)

bench: $(STAMP) ## compare with other libraries (about half an hour)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks peers

paper: $(STAMP) ## redo the experiments of docs/paper.md (some minutes)
	$(BIN)/python -m benchmarks paper

mutants: $(STAMP) ## plant bugs, one by one: the tests catch them (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --jobs $(WORKERS)

fuzz: $(STAMP) ## random calls of solve and random CSV files, for SECONDS=60
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py --seconds $(SECONDS)

counts: $(STAMP) ## bad inputs, faults and planted bugs, counted anew in README.md (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/counts.py --jobs $(WORKERS)

exhaustive: $(STAMP) ## run the long enumerations that make test leaves out
	@# 5 is pytest's code for "no test is marked": not a failure here, and only here.
	$(PYTEST) -m exhaustive || [ $$? -eq 5 ]

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## repair style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## check the types of src/
	$(BIN)/basedpyright src

contracts: $(STAMP) ## check that imports only point downwards
	$(BIN)/lint-imports

clean: ## remove .venv, demo/ and the caches
	rm -rf .venv demo .pytest_cache .ruff_cache .import_linter_cache .hypothesis dist
