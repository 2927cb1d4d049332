# One entry point for people and for CI. `make run`, `make test`, `make check`, `make bench`, `make digests`, `make gpu`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache

.PHONY: run test check lint types bench digests figure gpu clean

INSTALL := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt

$(VENV)/.run: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) -e .
	touch $@

$(VENV)/.ready: $(VENV)/.run
	$(INSTALL) -e ".[test,check]"
	touch $@

run: $(VENV)/.run
	$(BIN)/python -m sim.run --trace mixtral.npz

test: $(VENV)/.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

check: lint types test

bench: $(VENV)/.ready
	$(BIN)/python -m tests.bench

digests: $(VENV)/.ready  # ROOT=CHECKOUT: of another checkout
	$(BIN)/python -m tests.digests $(if $(ROOT),--root $(ROOT))

figure: $(VENV)/.ready  # docs/compare.svg, the README's figure
	for run in "fetch" "buddy --miss buddy" "cpu --miss cpu" "belady --eviction belady"; do \
	    set -- $$run; name=$$1; shift; \
	    $(BIN)/python -m sim.run --trace mixtral.npz --calibration 0.3 --out out/readme/$$name --force "$$@" || exit 1; \
	done
	$(BIN)/python -m analysis.compare out/readme/fetch out/readme/buddy out/readme/cpu out/readme/belady --format svg > docs/compare.svg

DEVICE ?= cuda
gpu:  # nothing is installed: a rented machine may have no registry (WHEELS=FOLDER brings packages); DEVICE=cpu: a dry run
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m runtime.gpu --device $(DEVICE)

clean:
	rm -rf $(VENV) .numba_cache
