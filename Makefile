# make demo | test | test-keras312 | lint | bench: each makes .venv first and installs what it needs, once.
# Needs Python 3.10 or newer, make and a way to PyPI. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
OUT ?= demo-out
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
PACKAGE := setup.cfg pyproject.toml constraints.txt

export TF_CPP_MIN_LOG_LEVEL ?= 3

# The older Keras that is tested too: its pin, and the folder that holds it. All else comes from .venv.
OLD_KERAS := $(shell sed -n 's/^keras==\(3\.12[^;]*\).*/\1/p' constraints.txt)
OLD := $(VENV)/keras-$(OLD_KERAS)
ONE_THREAD := OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 MPLBACKEND=agg

.PHONY: demo test test-keras312 lint bench clean help

help:
	@sed -n '1,2s/^# //p' Makefile

demo: $(VENV)/.demo
	$(BIN)/tfopt demo --out $(OUT)

# Two workers with one thread each: TensorFlow's own threads gain nothing on models this small. A worker that crashes ends
# the run: pytest-xdist can wait forever after it has replaced one.
test: $(VENV)/.test
	$(ONE_THREAD) \
	    $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -q $(ARGS)

# A tenth of the conformance suite on the older Keras, which stands before that of .venv on the path.
test-keras312: $(VENV)/.test $(OLD)
	$(ONE_THREAD) PYTHONPATH=$(CURDIR)/$(OLD) TFOPT_TEST_KERAS=3.12 \
	    $(BIN)/python -m pytest -q tests/conformance/test_conformance.py $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pylint --rcfile setup.cfg tfopt

bench: $(VENV)/.bench
	@set -e; for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:
	rm -rf $(VENV) build *.egg-info demo-out

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tfopt needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(OLD): | $(VENV)/.made
	rm -rf $@.part
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --target $@.part keras==$(OLD_KERAS)
	mv $@.part $@

$(VENV)/.demo $(VENV)/.test $(VENV)/.bench: $(VENV)/.%: $(VENV)/.made $(PACKAGE)
	@echo "Installing tfopt[$*] into $(VENV): TensorFlow is large, this takes some minutes the first time."
	$(INSTALL) -e '.[$*]'
	@touch $@
