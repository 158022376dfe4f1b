# `make train`, `make test` and `make docs` build .venv from the pinned versions first; for another Python beside it,
# `make test PYTHON=python3.13 VENV=.venv313`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
KERNEL := klrl/native/kernel.c
# The environment variables pin what an isolated build uses, too.
PIP := PIP_CONSTRAINT=$(CURDIR)/$(CONSTRAINTS) PIP_BUILD_CONSTRAINT=$(CURDIR)/$(CONSTRAINTS) \
  $(BIN)/python -m pip install --quiet --disable-pip-version-check
ENV ?= CartPole-v1
STEPS ?= 50000
SEED ?= 0

.PHONY: help train test tests slow lint style types docs recipes clean

help:  ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

train: $(VENV)/klrl  ## train PPO on CartPole-v1 and watch its policy drift (ENV=, STEPS=, SEED= change the task)
	$(BIN)/klrl train ppo --env $(ENV) --total-timesteps $(STEPS) --seed $(SEED)

# The types take one processor for a minute; the tests begin beside them.
test: style  ## style, types, doctests, tests but for the slow ones
	@$(MAKE) --no-print-directory --jobs 2 types tests

# Tests start many processes; each would compile klrl's files anew where Python keeps no bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n 2 --dist worksteal

tests: $(VENV)/dev
	$(PYTEST) -m 'not slow'

slow: $(VENV)/dev  ## the slow tests: trainings until something is learned, more ranks, hosts and engines
	$(PYTEST) -m slow

lint: style types

style: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/mypy

docs: $(VENV)/docs  ## the documentation site in build/docs; every warning, every dead link is an error
	$(BIN)/python docs/sitegen/blocks.py
	$(BIN)/sphinx-build -q --fresh-env --fail-on-warning --keep-going --nitpicky -b html docs build/docs
	@echo "written: build/docs/index.html"

# Each in an environment of its own, with klrl as anyone would install it; -P, because the files have the libraries' names.
RECIPES := $(basename $(notdir $(wildcard docs/recipes/*.txt)))
recipes: $(RECIPES:%=build/recipes/%/klrl)  ## trainings of other libraries, measured: every recipe in its own environment
	@for name in $(RECIPES); do \
	  echo "$$name:"; build/recipes/$$name/bin/python -P docs/recipes/$$name.py || exit 1; done

build/recipes/%/klrl: docs/recipes/%.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $< .
	@touch $@

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	  || { echo "PYTHON = $(PYTHON) is $$($(PYTHON) --version 2>&1); allowed: Python 3.11 to 3.14 (make PYTHON=python3.12 ...)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/klrl: $(BIN)/python pyproject.toml $(CONSTRAINTS) $(KERNEL)
	$(PIP) --editable .
	@touch $@

$(VENV)/docs: $(BIN)/python pyproject.toml $(CONSTRAINTS) $(KERNEL)
	$(PIP) --editable '.[docs]'
	@touch $@ $(VENV)/klrl

$(VENV)/dev: $(BIN)/python pyproject.toml $(CONSTRAINTS) $(KERNEL)
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/docs $(VENV)/klrl
