# Everything runs in .venv, which the first target that needs it creates. Options of a command go in ARGS:
#   make demo ARGS='--peers 5 --kill 2'      make test ARGS='tests/protocol -x'

VENV := .venv
STAMP := $(VENV)/.installed
ARGS ?=

# The first interpreter of 3.11 or newer that can make a virtual environment; PYTHON=… chooses another.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; \
	done)

.PHONY: help install demo test lint clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo      install into .venv and train a small model on four local peers (about three minutes)'
	@echo 'make test      run the tests'
	@echo 'make lint      ruff, mypy and the import contracts'
	@echo 'make install   only install into .venv (editable, with the development tools)'
	@echo 'make clean     remove .venv and everything that was built'

install: $(STAMP)

# One single install of everything: separate ones may settle on versions that do not go together.
$(STAMP): pyproject.toml constraints.txt
	@if ! test -x $(VENV)/bin/python; then \
		test -n '$(PYTHON)' || { echo 'Atoll needs Python 3.11 or newer with the venv module: install it, or name one with `make PYTHON=/path/to/python3`.' >&2; exit 1; }; \
		echo 'Creating $(VENV) with $(PYTHON).'; \
		$(PYTHON) -m venv $(VENV); \
	fi
	@echo 'Installing Atoll and what it needs into $(VENV) (a minute or two, about 2 GB).'
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(VENV)/bin/atoll demo $(ARGS)

test: $(STAMP)
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
