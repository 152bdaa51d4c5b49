# `make help` lists the targets.  The first one that needs it builds .venv; after that no target installs anything until
# pyproject.toml or constraints.txt changes.
#
#   PYTHON=python3.12 make test     another interpreter (3.10, 3.11 or 3.12) for .venv, which is built anew for it
#   TORCH_INDEX=URL make test       one more package index, such as the one for PyTorch's CPU builds, with which .venv has
#                                   3.5 GB.  Without it pip takes the build of its own index, on Linux mostly the one for
#                                   CUDA: all works the same without a GPU, and .venv has 6.5 GB.  pip's configuration
#                                   and PIP_* variables count as always.

TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VERSION := -c 'import sys; print(sys.version_info[:2])'
ifeq ($(origin PYTHON),undefined)
PYTHON := $(or $(wildcard $(BIN)/python),python3)
else ifneq ($(shell $(PYTHON) $(VERSION) 2>/dev/null),$(shell $(BIN)/python $(VERSION) 2>/dev/null))
.PHONY: $(STAMP)  # .venv is of another version, if there is one
endif

# One thread a process: the tests start several, which otherwise fight over the cores, and the demo's models are too
# small to gain from more.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo gpu gpu-container test-image test-bridge demo-bridge test test-unit test-stack test-jobs lint style clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP)  ## build .venv (the others do it by themselves)

demo: $(STAMP)  ## distil a small teacher into a student with another tokenizer, on this machine
	PYTHONWARNINGS="ignore:The pynvml package is deprecated:FutureWarning" $(BIN)/nemo llm distill --recipe xtoken_tiny

# The tests' files are spread over processes, the longest first (tests/conftest.py); each takes about 3 GB at most.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --workers=$(WORKERS) --durations=25

# mypy, which has one process, takes about as long as the first process of the tests needs to import and collect.  A
# test checks the contracts on imports.
test: style  ## lint and all tests
	@$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & types=$$!; echo "$(PYTEST)"; $(PYTEST); tests=$$?; \
	    wait $$types || tests=1; echo "$(BIN)/mypy"; cat $(VENV)/mypy.log; exit $$tests

test-unit: $(STAMP)  ## the tests that need no NeMo
	$(PYTEST) tests/unit

test-stack: $(STAMP)  ## the tests on NeMo and Megatron, in processes forked from ones that have imported them
	$(PYTEST) tests/stack

test-jobs: $(STAMP)  ## the tests of commands and whole runs
	$(PYTEST) tests/jobs

lint: style  ## ruff, mypy, and the contracts on imports
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What the image of the Dockerfile's target nemo2 has, as far as a CPU can run it.
IMAGE_PYTHON ?= python3.12
IMAGE_PACKAGES := nemo-toolkit==2.6.0 megatron-core==0.15.0

test-image:  ## the plugin's tests with the versions of NVIDIA's image 25.11, in .venv-image
	$(MAKE) VENV=.venv-image PYTHON=$(IMAGE_PYTHON) install
	test "$$(.venv-image/bin/python -m pip freeze | grep -cxE '$(subst $() ,|,$(IMAGE_PACKAGES))')" = 2 \
	    || .venv-image/bin/python -m pip install --no-deps $(IMAGE_PACKAGES)
	$(subst $(BIN)/,.venv-image/bin/,$(PYTEST)) tests/stack/plugin tests/stack/recipes

# Nothing is installed: the Python has PyTorch for CUDA, as that of NVIDIA's images has; what else is missing is said.
GPU_PYTHON ?= python3
GPU_ARGUMENTS ?=

gpu:  ## on a machine with a GPU: are the kernels right and how fast are the losses; 8 minutes, without NeMo
	PYTHONPATH="$(CURDIR):$(CURDIR)/benchmarks" $(GPU_PYTHON) -m gpu_report $(GPU_ARGUMENTS)

gpu-container:  ## in an image of the Dockerfile on a GPU, or two: imports, layouts, caches, signals, with what is expected
	PYTHONPATH="$(CURDIR):$(CURDIR)/benchmarks" $(GPU_PYTHON) -m gpu_report.container $(GPU_ARGUMENTS)

# Megatron-Bridge as the newest images have it, as far as a CPU can run it.  Its packages ask for Python 3.12; what they
# have of it is one name, which the tests give to 3.11.  There PyTorch's CPU build is the one that pip finds.
BRIDGE_PYTHON ?= $(PYTHON)
BRIDGE := .venv-bridge
BRIDGE_STAMP := $(BRIDGE)/.installed
BRIDGE_PACKAGES := tests/stack/bridge/requirements.txt

test-bridge: $(BRIDGE_STAMP)  ## the tests of Megatron-Bridge's adapter, in .venv-bridge
	$(subst $(BIN)/,$(BRIDGE)/bin/,$(PYTEST)) tests/stack/bridge

demo-bridge: $(BRIDGE_STAMP)  ## the demo through Megatron-Bridge (SETTINGS="key=value ..")
	$(BRIDGE)/bin/python tests/stack/bridge/tiny_on_cpu.py $(SETTINGS)

$(BRIDGE_STAMP): pyproject.toml $(BRIDGE_PACKAGES)
	@$(BRIDGE_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
	    echo "error: Python 3.11 or 3.12 is needed; '$(BRIDGE_PYTHON)' is: $$($(BRIDGE_PYTHON) --version 2>&1)"; \
	    echo "  to fix: BRIDGE_PYTHON=/path/to/python3.12 make test-bridge"; exit 1; }
	rm -rf $(BRIDGE)
	$(BRIDGE_PYTHON) -m venv $(BRIDGE)
	$(BRIDGE)/bin/python -m pip install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep ^torch== $(BRIDGE_PACKAGES))
	$(BRIDGE)/bin/python -m pip install --no-deps --ignore-requires-python -r $(BRIDGE_PACKAGES) -e .
	@touch $@

clean:  ## remove .venv and what tools leave behind; caches of runs stay
	rm -rf $(VENV) .venv-image .venv-bridge build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))' 2>/dev/null || { \
	    echo "error: Python 3.10, 3.11 or 3.12 is needed; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	    echo "  to fix: PYTHON=/path/to/python3.11 make ..."; exit 1; }
	@test "$$($(PYTHON) $(VERSION))" = "$$($(BIN)/python $(VERSION) 2>/dev/null)" || rm -rf $(VENV)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -e '.[nemo,dev]'
	@# For the tests of the Triton kernels, which interpret them; PyTorch's CUDA builds have a Triton of their own.  In a
	@# folder beside the packages, since much of the NeMo stack changes its ways where it finds one.  Without it they skip.
	test -d $(VENV)/triton/triton-3.4.0.dist-info || $(BIN)/python -c 'import triton' 2>/dev/null \
	    || $(BIN)/python -m pip install --no-deps --upgrade \
	    --target $(VENV)/triton triton==3.4.0 || echo "warning: no Triton here; the tests of its kernels will skip"
	@# Transformers 5, whose checkpoints tests exchange with those of the installed version 4.  Without it they skip.
	test -d $(VENV)/transformers5/transformers-5.24.0.dist-info \
	    || $(BIN)/python -m pip install --no-deps --upgrade --target $(VENV)/transformers5 transformers==5.24.0 \
	    huggingface_hub==2.4.0 tokenizers==0.23.3 httpx2==2.16.2 httpcore2==2.16.2 truststore==0.10.5 || \
	    echo "warning: no transformers 5 here; the tests that need it will skip"
	@# Clean with the pinned versions.  With others NeMo's many bounds may contradict each other without harm, so this
	@# warns and does not stop.
	$(BIN)/python -m pip check || echo "warning: the packages above disagree about versions; the tests tell whether it matters"
	@touch $@
