# Needs python3 (3.11 or newer) with venv, and make. Everything else lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Resolve to the versions that the tests ran with; see constraints.txt.
INSTALL := $(PIP) install -c constraints.txt
# Files side by side, as many as there are cores up to four: each starts servers of its own.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
# What failed half-way (venv without ensurepip leaves a python without pip) is made again next time.
.DELETE_ON_ERROR:
.PHONY: help demo test check audit format test-exporter proto proto-check retrieval-art samples replies clean

help: ## Shows this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

demo: $(VENV)/.run ## Sets up, then finds a map in a sample archive from a bad picture of it
	$(BIN)/mapseek demo

test: $(VENV)/.dev ## Sets up, then runs the tests (no torch, no GPU, no network)
	$(PYTEST)

check: $(VENV)/.dev proto-check ## Format, lint, types, import rules, drift of the generated stubs
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Formats and fixes what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

audit: $(VENV)/audit/.done ## Looks the pinned versions up among the known vulnerabilities
	$(VENV)/audit/bin/python .ci/audit.py

test-exporter: $(VENV)/.exporter ## Installs torch and Optimum as well, then tests exporting and training
	$(PYTEST) tests/exporter tests/training

proto: $(VENV)/.dev ## Generates the stubs from proto/ anew
	@$(call protoc,proto)

proto-check: $(VENV)/.dev
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && $(call protoc,$$out) && \
	for file in $$(cd "$$out" && find . -type f); do \
	  cmp "$$out/$$file" "proto/$$file" || { echo "stubs differ from the proto: run make proto"; exit 1; }; \
	done

retrieval-art: $(VENV)/.run ## Builds the folder of artwork that `mapseek bench retrieval` draws from (Debian, 1 GB)
	$(BIN)/python -m benchmarks.retrieval.fetch_art results/retrieval-art

samples: $(VENV)/.dev ## Draws the sample archive of the demo anew
	$(BIN)/python -m benchmarks.sample_archive

replies: $(VENV)/.dev ## Draws the replies that the README shows, and measures how long one takes
	$(BIN)/python -m tests.bot.discord.replies

clean: ## Removes what the targets above made
	rm -rf $(VENV) demo-out

# Fills a folder with the stubs. protoc finds its mypy plug-in on the PATH. Those of the Open Inference
# Protocol get a descriptor pool of their own: a process can register its messages only once, and
# whoever uses Triton's or KServe's client beside ours has registered theirs.
protoc = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iproto \
  --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) \
  $$(find proto -name '*.proto') && \
  sed -i.bak 's/_descriptor_pool.Default()/_descriptor_pool.DescriptorPool()/' $(1)/mapseek/oip/*_pb2.py && \
  rm $(1)/mapseek/oip/*.bak

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mapseek needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[cpu]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[cpu,dev]'
	@touch $@ $(VENV)/.run

# By itself: what it needs must not decide what mapseek is tested with.
$(VENV)/audit/.done: | $(BIN)/python
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip --disable-pip-version-check --quiet install 'pip-audit>=2.10,<3'
	@touch $@

$(VENV)/.exporter: $(VENV)/.dev
	$(INSTALL) -e '.[cpu,dev,exporter]'
	@touch $@
