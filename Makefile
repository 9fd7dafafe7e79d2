# The two commands are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PYTHONHASHSEED := 0

.PHONY: help setup demo test faults lint lock audit clean

help:  ## say what the targets do
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## */  make \1|/' | column -t -s '|'

$(READY): pyproject.toml requirements.lock requirements-detectron2.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py $(VENV)
	touch $@

setup: $(READY)  ## make the virtual environment

demo: $(READY)  ## the whole job on a rendered driving pool, on a CPU
	$(BIN)/python tools/curate.py --config-file configs/quickstart.yaml

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

faults: $(READY)  ## the whole fault suite: kills, signals, damage, full disks (an hour; root mounts small disks)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/robustness/faults --faults -s

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock:  ## pin what pyproject.toml names anew, with digests
	$(PYTHON) tools/lock.py

audit: $(READY)  ## known weaknesses of the packages, or where the list cannot be reached, that they are the lock's
	$(BIN)/python tools/audit.py

clean:  ## remove the environment and all output
	rm -rf $(VENV) output
