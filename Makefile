# The same commands for a stranger, a developer and CI. `make PYTHON=python3.12 ...` takes another interpreter for a new .venv.

PYTHON ?= python3
# made and removed by these rules, so it cannot be pointed at an environment of yours
override VENV := .venv
INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check -c constraints.txt
TESTS := OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help quickstart test slow clean

help: ## This list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed ## From nothing to a front of measured ONNX files on this machine's CPU
	$(VENV)/bin/hwnas run quickstart

test: $(VENV)/installed-dev ## Style, types, and the tests that take a minute or two
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(TESTS) -n 2

slow: $(VENV)/installed-dev ## The tests that take many minutes
	$(TESTS) -m slow

clean: ## Removes .venv, caches and builds; runs/ and measured tables stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made anew where it is missing, broken (its interpreter is gone) or of another place (the checkout was
# moved), and installed into where what is asked of it has changed; otherwise nothing is done.
$(shell $(VENV)/bin/python -c '' 2>/dev/null && grep -qF '$(CURDIR)/$(VENV)' $(VENV)/bin/activate || rm -rf $(VENV))

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hwnas needs Python 3.11 or newer: make PYTHON=/path/to/it")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/installed
