# A private environment in .venv, made with pip and the versions in constraints.txt.
# Needs python3 (3.10 or later, with venv) and make. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
METHODS := adamw,sgd,adan,lion,muon,cadamw
PEERS := build/peers
TEST := $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test slow exhaustive lint style types format readme bench clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo     compare six methods on a built-in problem; table on screen, report in build/demo'
	@echo 'make test     run the test suite but for its slow part'
	@echo 'make slow     run the slow part'
	@echo 'make exhaustive  compile every recorded trajectory and every pair of rules, too; an hour'
	@echo 'make lint     ruff (make style) and mypy --strict (make types)'
	@echo 'make format   let ruff rewrite the source'
	@echo 'make readme   run every command of README.md and every example'
	@echo 'make bench    run the benchmarks against other libraries'
	@echo 'make clean    remove what these made, the environment too'

demo: .venv/.lab
	mkdir -p build/demo
	$(BIN)/polyak compare digits-cnn --methods $(METHODS) --store build/demo/runs.db --report build/demo/report.html

test: .venv/.test
	$(TEST) -m 'not slow and not exhaustive'

# 5 is pytest's "nothing selected".
slow: .venv/.test
	$(TEST) -m slow || [ $$? -eq 5 ]

exhaustive: .venv/.test
	$(TEST) -m exhaustive

lint: style types

style: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.dev
	$(BIN)/mypy --strict

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: .venv/.test
	$(BIN)/python tools/check_readme.py

# Scripts whose name starts with _ are helpers of the others.
bench: .venv/.lab $(PEERS)/.stamp
	mkdir -p build/bench
	set -e; for script in benchmarks/[!_]*.py; do \
	  echo "== $$script"; PYTHONPATH=$(PEERS) $(BIN)/python "$$script"; done

# .venv/.lab, .venv/.test and .venv/.dev: the environment has that extra.
.venv/.%: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	@touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Beside the environment, not in it, so that no test ever sees these packages.
$(PEERS)/.stamp: .venv/bin/python benchmarks/requirements.txt
	rm -rf $(PEERS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(PEERS) \
	  -r benchmarks/requirements.txt
	@touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
