# Everything a newcomer or a developer runs. A fresh machine needs Python >= 3.11 and make; `make` alone lists the targets.
#   PYTHON=/path/to/python3   the interpreter that .venv is made from (default: the newest of those below)
#   TORCH_INDEX=URL           a package index for torch alone (default: the index that pip is configured with)
#   ARGS="tests/noise -x"     more arguments for pytest
PYTHON ?=
TORCH_INDEX ?=
ARGS ?=
OMP_NUM_THREADS ?= 1
export OMP_NUM_THREADS

INTERPRETERS = $(if $(PYTHON),"$(PYTHON)",python3.13 python3.12 python3.11 python3)
BIN = .venv/bin
PIP_INSTALL = $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input install
PYTEST = LIMBECK_TYPECHECK=1 $(BIN)/python -m pytest -q -n 2

.DEFAULT_GOAL = help
.PHONY: help demo demo-diffusers test test-all test-triton lint format docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.core ## distil a first model into runs/demo
	$(BIN)/limbeck distill --out runs/demo --overwrite --fail-above 1.5

demo-diffusers: .venv/.diffusers ## a small Stable Diffusion to one step and back into stock diffusers
	$(BIN)/python examples/diffusers_pipeline.py --out runs/demo-diffusers

test: .venv/.dev ## run the fast tests, with types and shapes checked at run time
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/.dev ## run all tests, those that train for minutes included
	$(PYTEST) --dist worksteal $(ARGS)

test-triton: .venv/.dev ## install triton (1 GB) and check its kernel in its CPU interpreter
	@$(PIP_INSTALL) -c constraints.txt -e '.[triton]'
	$(PYTEST) tests/networks/test_attention_triton.py

lint: .venv/.dev ## check style, types and the floors
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: .venv/.dev ## write the API reference to docs/api
	rm -rf docs/api
	$(BIN)/pdoc limbeck -o docs/api

wheel: .venv/.dev ## build the wheel into dist
	rm -rf dist
	$(BIN)/python -m build --wheel

clean: ## remove what builds and tests left (not .venv, not runs)
	rm -rf build dist docs/api .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is written after its last step, so that a failed install is repeated. An environment that no longer starts is
# made anew. A torch index need not carry the other pinned versions, so the constraints apply to the ordinary index alone.
.venv/.core: pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  for python in $(INTERPRETERS); do \
	    if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      echo "Making .venv with $$("$$python" -c 'import sys; print(sys.executable)')"; \
	      exec "$$python" -m venv --clear .venv; \
	    fi; \
	  done; \
	  echo "No Python >= 3.11 with its venv module among:" $(INTERPRETERS)". Install one (on Debian and Ubuntu" \
	    "python3-venv too), or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PIP_INSTALL) --upgrade pip
	@echo "Installing torch into .venv (once; some minutes on a slow line)"
	@$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)" \
	  $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)",-c constraints.txt)
	@echo "Installing limbeck into .venv"
	@$(PIP_INSTALL) -c constraints.txt -e .
	@touch $@

.venv/.diffusers: .venv/.core
	@echo "Installing diffusers into .venv"
	@$(PIP_INSTALL) -c constraints.txt -e '.[diffusers]'
	@touch $@

.venv/.dev: .venv/.core
	@echo "Installing the development tools into .venv"
	@$(PIP_INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@
