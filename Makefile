# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Made once, and anew when the dependencies change.
READY := $(VENV)/.ready

.PHONY: demo test test-slow test-browser test-gpu bench lint types contract check clean

demo: $(READY)
	$(BIN)/lookalike demo

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not gpu and not browser and not server"

# The demo itself, killed processes, and real data where LOOKALIKE_REAL_DATA names it.
test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not gpu and not browser and not server"

# Reports as people use them, in the system's Chromium.
test-browser: $(READY)
	$(BIN)/python -m pytest -m "browser"

# What only a GPU shows, where the torch that pip found has CUDA.
test-gpu: $(READY)
	$(BIN)/python -m pytest -m "gpu"

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

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	# Trackio asks for a Pillow below 13 and works with 13: what else it needs, then Trackio itself.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		brotli gradio-client orjson python-multipart
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps trackio
	touch $(READY)

clean:
	rm -rf $(VENV) build dist
