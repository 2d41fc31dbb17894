# make needs Python >= 3.11 and pip; everything else is installed, by hash, into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" --extra demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup dev demo test slow fuzz check bench docs lock default-model clean

setup: $(VENV)/.runtime
dev: $(VENV)/.dev

$(VENV)/.runtime: requirements/runtime.txt pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r requirements/runtime.txt
	$(BIN)/python -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements/dev.txt
	$(BIN)/python -m pip install -q --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install -q $(TORCH)
	@touch $@

demo: setup
	@$(BIN)/steelyard demo

test: dev
	$(BIN)/python -m pytest -q -n auto

slow: dev
	$(BIN)/python -m pytest -q -n auto -m slow

# Coverage-guided where atheris is installed, else by seed; findings go to fuzz-findings/.
MINUTES ?= 30
fuzz: dev
	$(BIN)/python fuzz/run.py --minutes $(MINUTES)

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry src
	$(BIN)/typos

bench: dev
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: setup
	$(BIN)/python docs/generate.py

# uv only writes the lock files; it is not needed to build, test or run.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	$(LOCK) pyproject.toml requirements/build.in -o requirements/runtime.txt
	$(LOCK) --extra privacy --extra postgres --extra telemetry --group dev --group oracles -c requirements/runtime.txt pyproject.toml requirements/build.in \
		requirements/dev.in -o requirements/dev.txt

default-model: dev
	$(BIN)/python recipes/helpdesk/train.py --out src/steelyard/data/helpdesk

clean:
	rm -rf $(VENV) site .hypothesis .mypy_cache .pytest_cache .ruff_cache
