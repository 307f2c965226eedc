# All set-up, the demo, the tests and the checks, from a fresh machine.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo golden test test-all engines check package bench-sequences lock clean preflight

setup: .venv/.ready

preflight:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "courier needs Python 3.11 or newer: install it (Debian: apt-get install python3 python3-venv), or say make PYTHON=/path/to/python3.11"; exit 1; }

.venv/.ready: pyproject.toml requirements.lock | preflight
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --progress-bar on --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/courier demo --workspace workspace

# Two processes; tests/conftest.py says which tests run together (those of a file, those of Spark) and which first.
test: setup
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The slow tests too, other examples and another order each time, and as on other machines: tests/matrix.py. Hours.
test-all: setup
	$(BIN)/python tests/matrix.py

# Plain Python, DuckDB, Spark, Beam: the same tables on 2,000 generated histories?
engines: setup
	$(BIN)/python -m pytest -q -s -m slow --timeout 3000 tests/jobs/sequences/test_engines.py

# The digests of what each stage makes, after a revision in jobs/stages.py was raised.
golden: setup
	COURIER_WRITE_GOLDEN=1 $(BIN)/python -m pytest -q tests/e2e/test_golden.py

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The wheel, the archive for spark-submit and their manifest, of the last commit, into dist/.
package: setup
	$(BIN)/python infra/packaging/package.py

bench-sequences: setup
	$(BIN)/python tests/bench/sequences.py --events 2000000 --events 20000000 --write docs/benchmarks/sequences.md

# Resolve anew and write down what was installed; run it to take newer versions of the dependencies.
lock:
	rm -rf .venv.lock && $(PYTHON) -m venv .venv.lock
	.venv.lock/bin/python -m pip install --editable '.[dev]'
	{ echo "# The versions that install and pass the tests together; written by make lock."; \
	  .venv.lock/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//; s/^torch @ .*torch-\([0-9.]*\).*/torch==\1/'; } > requirements.lock
	rm -rf .venv.lock

clean:
	rm -rf workspace
