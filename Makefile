PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check fuzz bench experiments clean

# The environment: made once, and again whenever the dependencies change.
.venv/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,plot]'
	touch $@

demo: .venv/.ready
	$(BIN)/python sample_data/demo.py

test: .venv/.ready
	$(BIN)/python -m pytest -n auto -m 'not slow and not gpu' --cov

check: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.fuzz --seconds 60 --seed 1
	$(BIN)/python -m pytest -n auto -m 'not gpu'

# The readers against files that nobody would write, for as many seconds as are given: make fuzz FOR=3600
fuzz: .venv/.ready
	$(BIN)/python -m tests.fuzz --seconds $(or $(FOR),1800)

bench: .venv/.ready
	$(BIN)/python benchmarks/run.py --json benchmarks/results.json $(if $(AGAINST),--against $(AGAINST))

# The papers' figures and tables, from the data in the folder HOPMEM_DATA (see docs/reproduction.md).
experiments: .venv/.ready
	$(BIN)/python -m experiments all

clean:
	rm -rf .venv demo results build *.egg-info
