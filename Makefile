# make run        create .venv, build, serve in the foreground: make run ARGS='--fsync always'
# make test       build and run the whole suite: make test TESTS=tests.test_record
# make test-long  crash campaigns for as long as there is time: make test-long ARGS='--minutes 60 --seed 7'
# make lint       ruff and cython-lint
# make debug      build with line tracing, assertions and balance counters; make test KVSTORE_DEBUG=1 tests that build
# make sanitize   run the suite on a build with the address and undefined behaviour sanitizers
# make coverage   run the suite and say which lines and branches of the engine it took: TESTS=... as above; ARGS=--missing
# make fuzz       each fuzz target for SECONDS=30 on a sanitized build by CLANG=clang; TARGETS='text offline'; SEED=1 repeats
# make soak       a real server under load, killed and stopped, for MINUTES=10; SEED=1 repeats
# make bench      this server beside redis-server and others: writes docs/benchmarks.md; ARGS=--quick only prints
# make bench-engine   kvcore beside lmdb, rocksdict and dict: writes docs/benchmarks-engine.md; ARGS=--quick only prints
# make build, make clean

PYTHON ?= python3
ARGS ?=
TESTS ?= tests
CLANG ?= clang
SECONDS ?= 30
MINUTES ?= 10
SEED ?=
export KVSTORE_DEBUG
export PIP_DISABLE_PIP_VERSION_CHECK = 1

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --root-user-action=ignore
TOOLS := $(VENV)/.tools
INSTALLED := $(VENV)/.installed
DEV := $(VENV)/.dev
BENCH := $(VENV)/.bench
FUZZ := $(VENV)/.fuzz

CYTHON_SOURCES := $(shell find kvcore kvnet tests -name '*.pyx' -o -name '*.pxd')
SOURCES := $(CYTHON_SOURCES) $(wildcard kvcore/*.h)
MODE := $(if $(filter-out 0,$(KVSTORE_DEBUG)),debug,release)
BUILT := build/$(MODE).stamp

.PHONY: run test test-long build debug sanitize coverage fuzz soak bench bench-engine image-test lint clean
.DELETE_ON_ERROR:

run: $(INSTALLED) $(BUILT)
	@$(BIN)/kvstore serve $(ARGS)

test: $(DEV) $(BUILT)
	$(BIN)/trial --temp-directory=build/trial $(TESTS)

test-long: $(DEV) $(BUILT)
	$(BIN)/python -m tests.campaign $(ARGS)
	@if command -v $(CLANG) >/dev/null; then $(MAKE) --no-print-directory fuzz; else echo "no $(CLANG): the fuzzers are left out"; fi

build: $(BUILT)

debug:
	@$(MAKE) --no-print-directory build KVSTORE_DEBUG=1

# The tree is copied, so that no sanitized module is ever left in it.
SANITIZE := build/sanitize
SANITIZE_ENV = ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
COPY_TREE = rm -rf $(1) && mkdir -p $(1) && tar c --exclude=./build --exclude=./.venv --exclude=./.git --exclude=./data \
	--exclude='*.so' --exclude=dropin.cache . | tar x -C $(1)
sanitize: $(DEV)
	@$(call COPY_TREE,$(SANITIZE))
	cd $(SANITIZE) && KVSTORE_SANITIZE=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(SANITIZE) && $(SANITIZE_ENV) LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" PYTHONPATH="$(CURDIR)/$(SANITIZE)" \
		$(CURDIR)/$(BIN)/trial --temp-directory=build/trial $(TESTS)

# Counts of another build, or of sources that have changed since, are worth nothing: everything is built anew.
COVERED := build/coverage
coverage: $(DEV)
	@$(call COPY_TREE,$(COVERED))
	cd $(COVERED) && KVSTORE_COVERAGE=1 $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	cd $(COVERED) && PYTHONPATH="$(CURDIR)/$(COVERED)" $(CURDIR)/$(BIN)/trial --temp-directory=build/trial $(TESTS)
	@$(BIN)/python tools/branches.py $(ARGS) $(COVERED)

# An input that failed is left in build/fuzz as TARGET-crash-...; "python -m tests.fuzz TARGET FILE" runs it once more.
FUZZED := build/fuzz
TARGETS ?= text segment covered order checkpoint manifest offline
FUZZ_PYTHON = cd $(FUZZED) && $(SANITIZE_ENV) PYTHONPATH="$(CURDIR)/$(FUZZED)" \
	LD_PRELOAD="$$($(CURDIR)/$(BIN)/python -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so" $(CURDIR)/$(BIN)/python
fuzz: $(FUZZ)
	@command -v $(CLANG) >/dev/null || { echo "kvstore: there is no $(CLANG); Debian, Ubuntu: apt install clang" >&2; exit 1; }
	@$(call COPY_TREE,$(FUZZED))
	cd $(FUZZED) && CC=$(CLANG) LDSHARED="$(CLANG) -shared" KVSTORE_SANITIZE=fuzzer \
		$(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace
	@for target in $(TARGETS); do \
		( $(FUZZ_PYTHON) -m tests.fuzz $$target --seconds=$(SECONDS) $(if $(SEED),--seed=$(SEED)) ) || exit 1; done

soak: $(DEV) $(BUILT)
	$(BIN)/python -m tests.soak --minutes=$(MINUTES) $(if $(SEED),--seed=$(SEED))

bench: $(BENCH) $(BUILT)
	$(BIN)/python benchmarks/compare.py --docs $(ARGS)

bench-engine: $(BENCH) $(BUILT)
	$(BIN)/python benchmarks/engine.py --docs $(ARGS)

# The Dockerfile's steps and what they make, without a container engine; ROOT is a Debian root: see tools/image.py.
image-test:
	$(PYTHON) tools/image.py $(ROOT)

lint: $(DEV)
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(CYTHON_SOURCES)

clean:
	rm -rf build dist $(VENV) *.egg-info .hypothesis .ruff_cache twisted/plugins/dropin.cache
	find . -path ./.git -prune -o \( -name '*.so' -o -name '__pycache__' \) -prune -exec rm -rf {} +

# What setup.py needs. An interpreter, compiler or header that is missing is said here, before anything is fetched.
$(TOOLS): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "kvstore: there is no $(PYTHON); Debian, Ubuntu: apt install python3" >&2; exit 1; }
	@$(PYTHON) tools/preflight.py
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade 'setuptools>=77' 'cython>=3.1'
	@touch $@

# A changed setup.py, or the step from one mode to the other, builds everything anew.
$(BUILT): $(SOURCES) setup.py | $(TOOLS)
	@mkdir -p build && rm -f $(filter-out $@,$(wildcard build/*.stamp))
	$(BIN)/python setup.py --quiet build_ext --inplace $(if $(filter setup.py,$?),--force)
	@touch $@

# Editable: one path entry that names this checkout, and the kvstore script.
$(INSTALLED): pyproject.toml | $(BUILT)
	@$(PIP) --no-build-isolation --editable .
	@touch $@

$(DEV): pyproject.toml | $(BUILT)
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@ $(INSTALLED)

$(FUZZ): pyproject.toml | $(BUILT)
	@$(PIP) --no-build-isolation --editable '.[dev,fuzz]'
	@touch $@ $(DEV) $(INSTALLED)

$(BENCH): pyproject.toml | $(BUILT)
	@$(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@ $(INSTALLED)
