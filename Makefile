# The two main targets are `make demo` and `make test`. Each sets up the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

export PYTHONHASHSEED := 0

.PHONY: help setup demo test test-unit faults lint docs lock audit stats clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */  make \1|/' | column -t -s '|'

$(READY): pyproject.toml requirements.lock requirements-detectron2.txt tools/setup_env.py
	$(PYTHON) tools/setup_env.py $(VENV)
	touch $@

setup: $(READY)  ## create the virtual environment .venv

demo: $(READY)  ## run all stages on a rendered driving pool, on a CPU
	$(BIN)/python tools/curate.py --config-file configs/quickstart.yaml

# One thread a process: the processes of pytest-xdist share the cores. A module stays on one of them, with its fixtures.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

test: $(READY)  ## run all tests in two processes
	$(PYTEST) $(PARALLEL)

test-unit: $(READY)  ## run the unit tests, which train nothing
	$(PYTEST) $(PARALLEL) tests/unit

faults: $(READY)  ## run the long fault suite and more random examples (an hour; as root it mounts small disks)
	$(PYTEST) tests/robustness/faults --faults -s
	DETCURATE_EXAMPLES=10 $(PYTEST) $(PARALLEL) tests/unit

lint: $(READY)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lock:  ## update requirements.lock from pyproject.toml
	$(PYTHON) tools/lock.py

audit: $(READY)  ## look for known vulnerabilities of the locked packages
	$(BIN)/python tools/audit.py

stats:  ## print the size of the package and its tests
	$(PYTHON) tools/stats.py

clean:  ## remove the environment and all output
	rm -rf $(VENV) output site build
