# Two commands do everything: `make demo` runs the main job, `make test` passes the tests. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo test unit integration soak lint format lock bench mutation parts clean

setup: $(STAMP)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Debian packages that the demo and the integration tests use; a no-op where they exist or where this is not root on Debian.
parts:
	@sh scripts/parts.sh

demo: setup parts
	$(BIN)/flops demo

# A file's tests stay together: their fixtures are dear.
PARALLEL ?= -n 3 --dist loadfile

test: setup parts
	$(BIN)/pytest $(PARALLEL)

unit: setup
	$(BIN)/pytest $(PARALLEL) tests/unit

integration: setup parts
	$(BIN)/pytest $(PARALLEL) tests/integration

# Kill loops and fault schedules in full length; `make test` has a short version of each. It prints what it counted.
soak: setup parts
	$(BIN)/pytest -s tests/soak

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Refresh the locks: names, versions and hashes, no addresses.
lock: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --group dev --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-annotate --no-header --upgrade pyproject.toml -o requirements/dev.txt
	$(BIN)/python scripts/runtime_lock.py

bench: setup parts
	$(BIN)/python bench/cold_build.py
	$(BIN)/python bench/memory.py
	$(BIN)/python bench/conflict.py
	$(BIN)/python bench/reuse.py
	$(BIN)/python bench/burst.py
	$(BIN)/python bench/observers.py
	$(BIN)/python bench/idle.py

# Breaks ten healthy repositories in ten ways each and counts what is repaired, on the real index.
mutation: setup
	$(BIN)/python -m tests.mutation.run --seed 1 2

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
