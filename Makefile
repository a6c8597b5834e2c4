# make demo   the main job: distil a small vision-language model, from nothing, in minutes
# make test   the tests
# make check  what CI runs: lint, types, import order, tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check lint install clean
.DEFAULT_GOAL := demo

$(STAMP): pyproject.toml constraints.txt
	@test -d $(VENV) || { echo "making $(VENV)"; $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "amad needs Python 3.11 or newer; set PYTHON=python3.11, say")' && $(PYTHON) -m venv $(VENV); }
	@echo "installing amad and what it needs (torch is large; a minute or more)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/amad demo

test: $(STAMP)
	$(BIN)/python -m pytest -n logical --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
