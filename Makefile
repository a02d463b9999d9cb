# One virtual environment for everything; it is made anew when what must be installed changes.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
DOCS_INSTALLED = $(VENV)/.docs-installed

.PHONY: demo test test-slow test-asan lint docs clean

demo: $(INSTALLED)
	$(BIN)/halfbyte quantize --out runs/demo --force

# The models of the tests are small: a process a core is nearly twice as fast as a thread a core.
SPREAD = -n auto --maxprocesses 4 --dist worksteal

test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SPREAD)

test-slow: $(INSTALLED) $(DOCS_INSTALLED) $(if $(shell command -v $(CXX)),test-asan)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(SPREAD)

# The kernels in a copy of the package that ends where memory is misused. Python itself is not built so: the sanitizer's library
# must be there first, with C++'s own, whose exceptions it watches. What is not freed is Python's business.
ASAN = build/asan
ASAN_TESTS = tests/runtime $(addprefix tests/program/test_,engine.py products.py calls.py fuzz.py)
test-asan: $(INSTALLED)
	HALFBYTE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(ASAN) --build-lib $(ASAN)/lib
	PYTHONPATH=$(ASAN)/lib OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	$(BIN)/python -m pytest $(ASAN_TESTS) -m "" $(SPREAD)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages, without warnings, in build/docs. The theme's notice of its successor is no fault of theirs.
docs: $(DOCS_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(DOCS_INSTALLED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --retries 15 --editable '.[docs]'
	touch $@

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --retries 15 --upgrade pip
	$(BIN)/python -m pip install --quiet --retries 15 --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
