# `make demo` and `make test` are all that a newcomer needs; both install what they need into .venv first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Tests run in two processes; one thread each, or they would fight for the cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test test-all test-scale coverage fuzz mutants lint types docs package audit bench bench-compare soak install clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), f"multilevel_sde needs Python >= 3.11, this is {sys.version.split()[0]}: run make PYTHON=python3.11 after removing .venv"'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/multilevel-sde demo --out demo-output

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not slow" $(PYTEST)

test-all: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

# The default tests with the lines that they run; a table of the files that miss some, and htmlcov/.
coverage:
	$(MAKE) test PYTEST="--cov --cov-report=term:skip-covered --cov-report=html"

# Ray on a local cluster with a worker killed, and three minutes of sampling with flat memory.
test-scale: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow tests/diffusion/sampling/test_ray.py tests/benchmarks/test_soak.py

# At least 100 000 bad inputs; prints how many of each kind were tried and what came of them. FUZZ="--seed 1" repeats.
fuzz: $(STAMP)
	cd tests && $(TEST_ENV) ../$(BIN)/python -m fuzz $(FUZZ)

# Small changes in the code that decides what a pilot says: do the fast tests notice? MUTANTS="--count 0" tries all.
mutants: $(STAMP)
	$(TEST_ENV) $(BIN)/python tests/mutants.py $(MUTANTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/pyright

# Then: do the pages load anything from elsewhere? They must be readable without a network.
docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python docs/self_contained.py docs/_build/html

# The wheel and the sdist, each installed in an empty environment, where the command must sample a shipped ladder.
package: $(STAMP)
	rm -rf dist build
	$(BIN)/python -m hatchling build
	for file in dist/*.whl dist/*.tar.gz; do \
	    rm -rf build/empty && $(PYTHON) -m venv build/empty && \
	    build/empty/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.lock)" && \
	    build/empty/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock "$$file[diffusion]" && \
	    (cd build && empty/bin/multilevel-sde sample --ladder digits --budget 5 --count 4 --out samples && rm -r samples) \
	    || exit 1; \
	done

# Known vulnerabilities of what the lock names; asks pypi.org.
audit: requirements.lock
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	build/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict

# Saved in .benchmarks; CPU time, which others on the machine disturb less than the clock.
bench: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest benchmarks/*/bench_*.py --benchmark-only --benchmark-autosave --benchmark-timer=time.process_time

# Run again and compare with the last saved run.
bench-compare: bench
	$(BIN)/python benchmarks/compare.py $$(ls -t .benchmarks/*/*.json | head -n 2 | tac)

# Sampling for an hour in one process: the memory that it holds must stay the same.
soak: $(STAMP)
	$(TEST_ENV) $(BIN)/python benchmarks/growth/soak.py --minutes 60

clean:
	rm -rf docs/_build demo-output build dist .pytest_cache .ruff_cache .hypothesis .benchmarks .coverage htmlcov
