# The two main targets are `make demo` and `make test`. Each sets up the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PYTHONHASHSEED := 0

.PHONY: help setup demo test faults lint docs lock audit stats clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

$(READY): pyproject.toml requirements.lock requirements-detectron2.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py $(VENV)
	touch $@

setup: $(READY)  ## create the virtual environment .venv

demo: $(READY)  ## run all stages on a rendered driving pool, on a CPU
	$(BIN)/python tools/curate.py --config-file configs/quickstart.yaml

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

faults: $(READY)  ## the whole fault suite: kills, signals, damage, full disks (an hour; root mounts small disks)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/robustness/faults --faults -s

lint: $(READY)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict --quiet

lock:  ## update requirements.lock from pyproject.toml
	$(PYTHON) tools/lock.py

audit: $(READY)  ## look for known vulnerabilities of the locked packages
	$(BIN)/python tools/audit.py

stats:  ## print the size of the package and its tests
	$(PYTHON) tools/stats.py

clean:  ## remove the environment and all output
	rm -rf $(VENV) output site build
