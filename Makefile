# Everything from nothing: `make recover` runs the main job, `make test` runs the tests; both set up first.
SHELL := /bin/sh
VENV := .venv
RUN := $(VENV)/bin/python
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)
OVERRIDES = $(if $(MODEL),model=$(MODEL)) $(if $(PRUNE),prune=$(PRUNE)) $(if $(RATIO),ratio=$(RATIO)) \
	$(if $(ADAPTER),adapter=$(ADAPTER)) $(ARGS)
INSTALLED := $(VENV)/.installed
FOR_A_GPU := $(VENV)/.installed-for-a-gpu
# A file's tests stay in one process, because they share what its fixtures build; conftest.py says which files begin.
TEST = OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
SLOW := real or slow
NEWEST := .venv-newest
NEWEST_PACKAGES = PYTHONPATH=tests $(RUN) -m helpers.newest
NEWEST_TEST = OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder \
	-m 'not ($(SLOW) or faults)'

.DEFAULT_GOAL := help
.PHONY: help setup recover plan compare screenshots wandb-sync wandb-report wandb-sweep gpu-check test test-slow test-all test-newest faults check format lint types constraints clean

help: ## show this
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'recover and plan take MODEL=  PRUNE=  RATIO=  ADAPTER=  ARGS="any.hydra=override"'

setup: $(INSTALLED) ## create .venv with the pinned dependencies (done once)
ifneq ($(filter setup,$(MAKECMDGOALS)),)
	@echo '$(VENV) is ready. Next: make plan (what a run would do, in seconds), then make recover'
endif

# torch first and by pip: other packages would pull another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11-3.13 found. Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12' >&2; exit 1; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo 'installing the pinned dependencies into $(VENV) (a few minutes, once)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

recover: setup ## prune, recover, judge and report
	@$(RUN) -m pipeline $(OVERRIDES)

plan: setup ## print what a recover would do, and do nothing
	@$(RUN) -m pipeline action=plan $(OVERRIDES)

compare: setup ## lay all runs of the store side by side, on one page
	@$(RUN) -m pipeline.compare $(ARGS)

wandb-sync: setup ## send the runs that W&B recorded offline, each once
	@$(RUN) -m pipeline.wandb sync $(ARGS)

wandb-report: setup ## build a W&B report that overlays all recovery curves (ARGS=--online saves it)
	@$(RUN) -m pipeline.wandb report $(ARGS)

wandb-sweep: setup ## write a W&B sweep file (ARGS="adapter=rora,dora ratio=0.2,0.3")
	@$(RUN) -m pipeline.wandb sweep $(ARGS)

screenshots: setup ## take pictures of outputs/compare.html for the pages (needs Chromium)
	@PYTHONPATH=tests $(RUN) -m helpers.screenshots outputs/compare.html docs

# Two optional packages that only an NVIDIA GPU has a use for. Without them the checks that use them say so.
$(FOR_A_GPU): $(INSTALLED)
	@echo 'installing liger-kernel and bitsandbytes into $(VENV)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,gpu,quantised]' \
		&& touch $@ || echo 'note: that failed. The checks go on without them.' >&2

gpu-check: setup $(if $(filter cpu,$(DEVICE)),,$(shell command -v nvidia-smi >/dev/null && echo $(FOR_A_GPU))) ## measure a GPU in eight minutes (FULL=1: whole 7Bs, DEVICE=cpu: at toy size)
	@$(RUN) -m benchmarks.gpu_check $(if $(DEVICE),--device $(DEVICE)) $(if $(FULL),--full) $(ARGS)

test: setup ## run the tests: minutes, and no network
	@$(TEST) -m 'not ($(SLOW) or faults)' $(ARGS)

test-slow: setup ## run what `make test` leaves out: the real model, and long whole runs
	@$(TEST) -m '$(SLOW)' $(ARGS)

faults: setup ## damage, kill and mislead it in every way known: a table of what survived (up to an hour)
	@$(TEST) tests/faults -m 'faults or not faults' $(ARGS)

test-all: setup ## run both
	@$(TEST) $(ARGS)

# An environment of its own, so that what is pinned stays. First the newest versions that resolve together, then without
# llm-compressor, which holds transformers, and without the tests that need it.
test-newest: setup ## run the tests with the newest packages that resolve together, in .venv-newest (hours, gigabytes)
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $$($(NEWEST_PACKAGES))
	@$(NEWEST_TEST) $(ARGS)
	@$(NEWEST)/bin/python -m pip uninstall --quiet --yes llmcompressor
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade $$($(NEWEST_PACKAGES) --without llmcompressor)
	@$(NEWEST_TEST) -k 'not masks and not sparseml and not masked' $(ARGS)

check: lint types test ## lint, format, types and `make test`

lint: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: setup
	@$(RUN) -m mypy

format: setup ## rewrite the code as the linter wants it
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

constraints: setup ## write constraints.txt from what is installed
	@{ echo '# Exact versions of everything the project installs, for Python 3.11-3.13. Made with: make constraints'; \
	  $(RUN) -m pip freeze --exclude-editable | grep -viE '^(torch|pip|setuptools|wheel)=='; echo 'torch==2.13.0'; } \
	  | sort -f > constraints.txt.new && mv constraints.txt.new constraints.txt

clean: ## remove the virtual environment (artifacts and outputs stay)
	@rm -rf $(VENV)
