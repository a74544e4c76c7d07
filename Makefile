# make demo   install, then run examples/quickstart.ipynb on an embedded pool, each output as it comes
# make lab    open the same notebook in JupyterLab
# make test   install and run every check
# make bench  measure against peers; prints tables (minutes)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo lab test lint types tests bench clean

demo: $(VENV)/installed
	$(BIN)/python examples/run_notebook.py examples/quickstart.ipynb executed/quickstart.ipynb

lab: $(VENV)/installed
	$(BIN)/jupyter lab examples/quickstart.ipynb

test: $(VENV)/installed lint types tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/installed
	$(BIN)/mypy

tests: $(VENV)/installed
	$(BIN)/python -m pytest

bench: $(VENV)/installed
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) executed build dist .ruff_cache .mypy_cache .pytest_cache

# torch first and by itself, so that nothing else chooses which one comes
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@test -d $(VENV) || { echo "making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch (once; some minutes, depending on the network)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch' constraints.txt)
	@echo "installing kalavai_nb and what it needs"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
