# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv first, `demo`
# with what it takes to run Lookalike and no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# What pip does on one core, on all of them; some packages hold files for newer Pythons.
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib
# What it takes to run Lookalike, and on top of it what it takes to test it: each made once, and
# anew when the dependencies change.
BASE := $(VENV)/.base
READY := $(VENV)/.ready
# As many processes as there are cores: each begins with its share of the files, in order, so that
# what a file's tests share is made once, and takes from the others' when it is done.
SPREAD := -n logical --maxprocesses 8 --dist worksteal
# The files with tests of a kind: each process imports all that it is given, in some seconds.
FILES = $$(grep -lr --include='*.py' 'pytest\.mark\.$(1)' tests | sort)

.PHONY: demo test test-slow test-browser test-gpu soak bench lint types contract check clean

demo: $(BASE)
	$(BIN)/lookalike demo

test: $(READY)
	$(BIN)/python -m pytest $(SPREAD) -m "not slow and not gpu and not browser and not server"

# The demo itself, killed processes, and real data where LOOKALIKE_REAL_DATA names it.
test-slow: $(READY)
	$(BIN)/python -m pytest $(SPREAD) -m "slow and not gpu and not browser and not server" $(call FILES,slow)

# Reports as people use them, in the system's Chromium.
test-browser: $(READY)
	$(BIN)/python -m pytest $(SPREAD) -m "browser" $(call FILES,browser)

# What only a GPU shows, where the torch that pip found has CUDA.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m "gpu"

# Random faults, in some twenty minutes: each command is to end well, in time, nothing damaged.
soak: $(READY)
	cd tests && ../$(BIN)/python -m soak --count 200 --seed $(or $(SEED),1)

# How fast it is here, in some minutes; for all tables see benchmarks/speed/page.py.
bench: $(READY)
	$(BIN)/python benchmarks/speed/page.py --short

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

contract: $(READY)
	$(BIN)/lint-imports

check: lint types contract test

$(BASE): pyproject.toml requirements.txt constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(COMPILE) || true
	touch $@

$(READY): $(BASE)
	$(PIP) -c constraints.txt -e ".[dev]"
	# Trackio asks for a Pillow below 13 and works with 13: what else it needs, then Trackio itself.
	$(PIP) -c constraints.txt brotli gradio-client orjson python-multipart
	$(PIP) -c constraints.txt --no-deps trackio
	$(COMPILE) || true
	touch $@

clean:
	rm -rf $(VENV) build dist
