# `make demo` runs the main job end to end, `make test` runs every test. Both set up .venv first.

PYTHON ?= python3
DATA ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint dist clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "ToCo needs Python 3.10 or newer, this is " + sys.version.split()[0] + ": run make PYTHON=/path/to/newer/python3")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo $(if $(DATA),--data "$(DATA)")

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	MYPYPATH=toco_core $(BIN)/mypy triton_models/toco_image/1/model.py
	$(BIN)/python -m benchmarks.results --check

dist: $(STAMP)
	rm -rf dist build *.egg-info
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) demo dist build *.egg-info .pytest_cache .mypy_cache .ruff_cache
