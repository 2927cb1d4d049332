# One entry point for people and for CI. `make run`, `make test`, `make first-hour`, `make check`, `make docs`, `make bench`,
# `make bench-compare`, `make digests`, `make gpu`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What tests compile lies in the checkout; commands keep it where `python -m` looks for it, too: the user's cache folder.
test first-hour bench bench-compare digests: export NUMBA_CACHE_DIR ?= $(CURDIR)/.numba_cache

.PHONY: run test first-hour check lint types docs bench bench-compare digests figure glossary engines policies published gpu clean

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

first-hour: $(VENV)/.ready  # a wheel in an empty environment, and what README.md and docs/ show run there
	$(BIN)/python -m tests.first_hour

docs: $(VENV)/.ready  # the documentation as a site: out/site/index.html, to be read without a network
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

check: lint types test

bench: $(VENV)/.ready  # SECTIONS="policies cold": some of them; JSON=FILE: every round of every figure
	$(BIN)/python -m tests.bench $(SECTIONS) $(if $(JSON),--json $(JSON))

bench-compare: $(VENV)/.ready  # BASE=COMMIT or a checkout's folder: this one and that one, interleaved
	$(BIN)/python -m tests.bench compare --base "$(BASE)" $(if $(ONLY),--only "$(ONLY)") $(if $(JSON),--json $(JSON))

digests: $(VENV)/.ready  # ROOT=CHECKOUT: of another checkout
	$(BIN)/python -m tests.digests $(if $(ROOT),--root $(ROOT))

figure: $(VENV)/.ready  # docs/compare.svg, the README's figure
	for run in "fetch" "buddy --miss buddy" "cpu --miss cpu" "belady --eviction belady"; do \
	    set -- $$run; name=$$1; shift; \
	    $(BIN)/python -m sim.run --trace mixtral.npz --calibration 0.3 --out out/readme/$$name --force "$$@" || exit 1; \
	done
	$(BIN)/python -m analysis.compare out/readme/fetch out/readme/buddy out/readme/cpu out/readme/belady --format svg > docs/compare.svg

glossary: $(VENV)/.run
	$(BIN)/python -c "from sim.outcome.glossary import page; print(page(), end='')" > docs/glossary.md

engines: $(VENV)/.ready  # analysis/results/engines.*, of the sample and of two captures beside the checkout
	$(BIN)/python -m sim.experiments engines --trace mixtral.npz ../shared/traces/olmoe-1b-7b.npz ../shared/traces/gpt-oss-20b.npz \
	    --vram 16GB 3GB 8GB --hardware rtx4090 --precision q4-k-m --ratios 0.25 0.5 1 2 --out out/engines > /dev/null
	cp out/engines/engines.md out/engines/engines.csv analysis/results/
	$(BIN)/python -m analysis.engines out/engines/runs/* > analysis/results/engines.svg

CAPTURES := $(addprefix ../shared/traces/,mixtral-8x7b.npz gpt-oss-20b.npz olmoe-1b-7b.npz qwen1.5-moe.npz)

policies: $(VENV)/.ready  # analysis/results/policies.* and miss_policies.*, of captures beside the checkout
	$(BIN)/python -m sim.experiments policies --trace $(CAPTURES) ../shared/traces/granite-3.0-1b.npz \
	    --policies eviction prefetch --out out/policies > /dev/null
	cp out/policies/policies.md out/policies/policies.csv analysis/results/
	$(BIN)/python -m analysis.policies out/policies/policies.csv --out analysis/results/policies.svg
	$(BIN)/python -m sim.experiments policies --trace $(CAPTURES) --out out/miss_policies > /dev/null
	for kind in md csv; do cp out/miss_policies/policies.$$kind analysis/results/miss_policies.$$kind || exit 1; done

published: $(VENV)/.ready  # analysis/results/published.*, constants and intervals of the catalog; one thread: small matrices, equal bits
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m sim.experiments published --out analysis/results --catalog sim/catalog > /dev/null
	$(BIN)/python -m analysis.published analysis/results/published.csv --out analysis/results/published.svg

MODEL ?= tiny-moe
study: $(VENV)/.ready  # of one small model all that analysis/results says of it: about an hour of CPU time; goes on where it was
	$(BIN)/python -m runtime.study --model $(MODEL) --workers 2 --out analysis/results > /dev/null
	$(BIN)/python -m runtime.substitutions --model $(MODEL) --out analysis/results > /dev/null

DEVICE ?= cuda
gpu:  # nothing is installed: a rented machine may have no registry (WHEELS=FOLDER brings packages); DEVICE=cpu: a dry run
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m runtime.gpu --device $(DEVICE)

clean:
	rm -rf $(VENV) .numba_cache
