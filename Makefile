# Every target sets up what it needs in .venv by itself; `make help` lists them.
# ARGS is handed to the command: `make test ARGS="tests/flow -k window"`, `make demo ARGS="--seconds 20"`.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test check soak bench clean

VENV := .venv
BIN := $(VENV)/bin
SYNCED := $(VENV)/.synced
UV := $(BIN)/uv
ARGS ?=
# Most tests wait for real processes, so two at a time take half the time, also on two cores.
TESTERS ?= 2

# The first interpreter that is new enough and can make environments; PYTHON=… overrides the search.
PYTHONS := $(if $(PYTHON),$(PYTHON),python3 python3.13 python3.12 python3.11 python3.14)
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

export UV_PROJECT_ENVIRONMENT := $(CURDIR)/$(VENV)
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= copy
# Trust what the machine trusts, as pip does: some networks have a certificate authority of their own.
export UV_SYSTEM_CERTS ?= true

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

setup: $(SYNCED) ## prepare .venv (the other targets do it themselves)

demo: $(SYNCED) ## a three-node cluster on this machine over a real sensor stream, for a minute
	@$(BIN)/penstock demo $(ARGS)

test: $(SYNCED) ## every test this machine can run
	@$(BIN)/pytest -q -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(SYNCED) ## format, lint, types, floors
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-cache 2>&1) && echo "$$report" | tail -1 || { echo "$$report"; exit 1; }

soak: $(SYNCED) ## the simulators of the protocols with fresh seeds, five minutes each
	@$(BIN)/python -m tests.soak $(ARGS)

bench: $(SYNCED) ## the benchmark table, bench/RESULTS.md and its plots (peers get environments of their own)
	@$(BIN)/python -m bench.run $(ARGS)

clean: ## remove everything that the other targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist bench/.envs bench/.data
	find src tests examples bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(UV):
	@for candidate in $(PYTHONS); do \
	    if $$candidate -c '$(USABLE)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "Penstock needs Python 3.11 or newer with the venv module; tried: $(PYTHONS)." >&2; \
	    echo "  -> install one (Debian: apt-get install python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "preparing $(VENV) with $$($$python --version)"; \
	$$python -m venv --clear $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(SYNCED): pyproject.toml uv.lock | $(UV)
	@$(UV) sync --quiet --frozen --inexact --all-extras --python $(BIN)/python
	@touch $@
