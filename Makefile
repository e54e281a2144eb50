# Every target makes the virtual environment that it needs. PYTHON chooses the interpreter (3.11, 3.12).
PYTHON ?= python3
BIN := .venv/bin
PARITY := .venv-parity/bin
RUN := runs/demo

.PHONY: demo test lint format parity clean

demo: .venv/installed  ## protect real photographs, train on them, write a report
	$(BIN)/python -m experiments.eudp --config=demo --workdir=$(RUN)
	$(BIN)/python -m experiments.verify --radius_255=16 \
	  --clean=$(RUN)/clean --protected=$(RUN)/protected/eudp | tail -n 1

test: .venv/installed  ## all tests: no network, no accelerator, no other files
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: .venv-parity/installed  ## live comparison with PyTorch diffusers, in its own environment
	JAX_PLATFORMS=cpu PYTHONPATH=. $(PARITY)/python -m pytest tests/parity

clean:  ## remove both environments and the caches, keep runs/
	rm -rf .venv .venv-parity .pytest_cache .mypy_cache .ruff_cache *.egg-info build

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "error: Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

# torch first and alone: with it in place, the others do not ask for a build of several gigabytes.
.venv-parity/installed: tests/parity/requirements.txt
	$(PYTHON) -m venv .venv-parity
	$(PARITY)/python -m pip install -q --upgrade pip
	$(PARITY)/python -m pip install -q torch==2.13.0
	$(PARITY)/python -m pip install -q -r tests/parity/requirements.txt
	@touch $@
