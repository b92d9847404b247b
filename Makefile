# make demo    first filtered retrieval on example data, from nothing
# make test    the whole test suite, from nothing
# Both make the environment in .venv first; a second call reuses it. Other Python: make PYTHON=python3.12 ...

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n auto --maxprocesses 4

BIN := $(VENV)/bin
STAMP := $(VENV)/.stcli-installed
DEMO_STAMP := $(VENV)/.stcli-demo
WHEEL_VENV := build/wheel-venv
WHEEL_TREE := build/wheel-tree
SITE_PACKAGES := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
WHEEL_SITE := $$($(WHEEL_VENV)/bin/python $(SITE_PACKAGES))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help install demo test test-fast gpu lint types format wheel wheel-test clean

help:
	@echo "targets: demo test test-fast gpu lint types format wheel-test clean"

install: $(STAMP)

# The install builds the native library, so the kernels are prerequisites. An old library goes first: the build is
# optional, and one that fails must not leave last week's code behind. Of the 16,000 modules that come with [dev] few are
# ever imported, so compiling all of them first (4.7 ms each) is left out. The example takes [dev] where it is there or
# asked for in the same call, and else [bench], which is half as large.
$(STAMP): EXTRA := dev
$(DEMO_STAMP): EXTRA := bench
$(STAMP) $(DEMO_STAMP): pyproject.toml constraints.txt $(wildcard kernels/*.cpp kernels/*.h)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f stcli/_native*.so
	$(BIN)/python -m pip install --no-compile --constraint constraints.txt --editable '.[$(EXTRA)]'
	touch $@
DEMO_NEEDS := $(if $(wildcard $(STAMP))$(filter-out demo,$(MAKECMDGOALS)),$(STAMP),$(DEMO_STAMP))

# ---- the example: 43,591 Unicode characters, found by their names --------------------------------

demo/queries.parquet: examples/make_unicode_data.py examples/sparse_svd.py | $(DEMO_NEEDS)
	OMP_NUM_THREADS=1 $(BIN)/python examples/make_unicode_data.py --out demo

COLUMNS := --id-column query_id --embedding-column embedding --filter-column filter

demo: export PATH := $(abspath $(BIN)):$(PATH)
demo: demo/queries.parquet
	rm -rf demo/items.index demo/model.safetensors demo/results demo/others demo/report
	stcli build-index demo/items.parquet -o demo/items.index --id-column item_id --embedding-column embedding \
	  --feature-columns category,bidirectional,width,words,script,numeric --keep-columns char,name,category,numeric
	stcli pack-model demo/items.index -o demo/model.safetensors
	stcli retrieve demo/model.safetensors demo/queries.parquet -o demo/results --k 10 $(COLUMNS) \
	  --columns text,filter --item-columns char,name
	stcli retrieve demo/model.safetensors demo/queries.parquet -o demo/others --k 10 $(COLUMNS) --limit 3 --quiet \
	  --columns text,filter --item-columns char,name --filter 'NOT words IN $$own_words'
	stcli bench demo/model.safetensors demo/queries.parquet -o demo/report --k 10 $(COLUMNS)
	$(BIN)/python examples/show_results.py demo/results
	@echo "The same phrases with the template: NOT words IN \$$own_words (names that share no word with the phrase)"
	$(BIN)/python examples/show_results.py demo/others --queries 3

# ---- checks ----------------------------------------------------------------------------------------

test: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-fast: $(STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS) -m "not slow"

# On a machine with a GPU, from a checkout, with the Python that has torch: nothing is installed. Writes OUT/report.json
# and OUT/report.html within 9 minutes. Elsewhere: make gpu OUT=dir GPU_ARGS="--device cpu --size toy"
OUT ?= gpu-report
gpu:
	$(PYTHON) examples/gpu_report.py --out $(OUT) $(GPU_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

# The wheel is built from the source distribution, so a file missing from either shows: every file of the tree must be
# installed, and equal. Its environment borrows the dependencies of .venv by a .pth file (whose own .pth files, and so the
# editable install, are not read), and WHEEL_TESTS run in a copy of the tree that has no stcli/ and no kernels/: what a
# wheel can lack. What is packed and compiled, the texts and kernels that are read at run time, every command once, and
# processes that import stcli. In one process, since each would import torch (3 s).
WHEEL_TESTS := tests/test_packaging.py tests/cli/test_help.py tests/cli/test_cli.py::test_from_a_table_to_results \
  tests/cli/test_cli.py::test_json_is_exactly_one_object tests/cli/test_cli.py::test_bench_writes_a_report \
  tests/cli/test_cli.py::test_a_process_without_warnings tests/examples/test_python_api.py \
  tests/filters/test_parse.py::test_examples_of_the_documentation_work tests/ops/test_cuda.py::test_every_kernel_is_one_text \
  tests/ops/test_native.py tests/pipeline/test_workers.py::test_an_error_of_a_worker_is_raised

wheel: $(STAMP)
	rm -rf build/dist
	$(BIN)/python -m build --outdir build/dist .

wheel-test: wheel
	rm -rf $(WHEEL_VENV) $(WHEEL_TREE)
	$(BIN)/python -m venv $(WHEEL_VENV)
	$(BIN)/python $(SITE_PACKAGES) > $(WHEEL_SITE)/dependencies.pth
	$(WHEEL_VENV)/bin/python -m pip install --quiet --no-deps --no-index build/dist/stcli-*.whl
	diff -r -x __pycache__ -x '_native*.so' -x _kernels stcli $(WHEEL_SITE)/stcli
	diff -r -x __pycache__ kernels $(WHEEL_SITE)/stcli/_kernels
	mkdir -p $(WHEEL_TREE)
	cp -r tests examples pyproject.toml constraints.txt Makefile README.md CHANGELOG.md LICENSE $(WHEEL_TREE)
	cd $(WHEEL_TREE) && ../wheel-venv/bin/python -c "import stcli, sys; assert stcli.__file__.startswith(sys.prefix), stcli.__file__"
	cd $(WHEEL_TREE) && PATH=$(abspath $(WHEEL_VENV))/bin:$$PATH ../wheel-venv/bin/python -m pytest $(WHEEL_TESTS)

clean:
	rm -rf build demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis $(STAMP)
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
	rm -f stcli/_native*.so
