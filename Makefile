# make demo | test | lint | bench: each makes .venv first and installs what it needs, once.
# Needs Python 3.10 or newer, make and a way to PyPI. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
OUT ?= demo-out
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
PACKAGE := setup.cfg pyproject.toml constraints.txt

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test lint bench clean help

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.demo
	$(BIN)/tfopt demo --out $(OUT)

# Two workers with one thread each: TensorFlow's own threads gain nothing on models this small. A worker that crashes ends
# the run: pytest-xdist can wait forever after it has replaced one.
test: $(VENV)/.test
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 MPLBACKEND=agg \
	    $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -q $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build *.egg-info demo-out

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tfopt needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: $(VENV)/.made $(PACKAGE)
	@echo "Installing tfopt[$*] into $(VENV): TensorFlow is large, this takes some minutes the first time."
	$(INSTALL) -e '.[$*]'
	@touch $@
