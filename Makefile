# Short recipes; the tools do the work. All output goes to .venv (the environment) and .xft (results, databases).
PYTHON ?= python3
export XFT_HOME ?= $(CURDIR)/.xft
export DO_NOT_TRACK = 1
export MLFLOW_DISABLE_TELEMETRY = true
export PREFECT_SERVER_ANALYTICS_ENABLED = false
BIN = .venv/bin
# Compiles bytecode once, with all cores, for Pythons that must not write it (PYTHONDONTWRITEBYTECODE, as in many containers) and
# for sandboxes, which cannot: both would compile their imports at each start. Skips dependencies of evalplus that nothing here
# imports. Some packages contain files for other Pythons, so the exit status is ignored.
INSTALL = $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/(anthropic|openai)/' .venv/lib xft_core tasks flows || true

.PHONY: demo ui test fast-tests test-slow check screenshots ds1000 smollm2 paper-plan paper-table demo-model bench bench-gpu sandbox chromium ceph toolchains docs clean

demo: .venv/run sandbox      ## The whole pipeline on the model and data that ship with the package
	@$(BIN)/xft run deployments/recipes/demo.yaml $(if $(shell command -v bwrap),,--set evaluate.sandbox=unsafe)

ui: .venv/run                ## Prefect and MLflow in the browser
	@$(BIN)/xft ui

test: .venv/test             ## Lint, types, import walls, and the fast tests
	@$(MAKE) --no-print-directory -j 2 check fast-tests

fast-tests: .venv/test
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: .venv/test chromium ceph  ## The slow tests, including pages in a browser and a Ceph cluster
	$(BIN)/python -m pytest -m slow

screenshots: .venv/test chromium  ## The screenshots in the docs, from the newest run and comparison in XFT_HOME
	$(BIN)/python -m tests.ui.screenshots $(XFT_HOME) docs/images

check: .venv/test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ds1000: .venv/run sandbox    ## The environment that DS-1000 is graded in (about 3 GB, in ~/.cache/xft)
	$(BIN)/python -m xft_core ds1000-environment

smollm2: .venv/run sandbox   ## A limited real run: SmolLM2-135M on 2 CPU cores
	$(INSTALL) ".[gguf]"
	$(BIN)/python deployments/fetch_smollm2.py .downloads
	$(BIN)/xft run deployments/recipes/smollm2_cpu.yaml

# The paper's complete table (arXiv 2404.15247): merge methods x seeds, all benchmarks, the rivals. For a GPU machine with Hub access.
PAPER = deployments/recipes/deepseek_coder_1_3b.yaml --grid 'merge.method=[learned,uniform,ewa]' --grid 'seed=[0,4,8]'

paper-plan: .venv/run        ## What paper-table costs on this machine
	@$(BIN)/xft plan $(PAPER)

paper-table: .venv/run sandbox  ## The paper's table: XFT, its MoE, EWA and SFT with its rivals, three seeds (needs XFT_BENCHMARKS)
	$(BIN)/xft compare $(PAPER) --report paper-table/

demo-model: .venv/run        ## Build the shipped demo model, data and benchmark again
	$(BIN)/python -m xft_core.demo.build

docs: .venv/docs             ## The documentation as a web site in site/; a broken link is an error
	$(BIN)/mkdocs build --strict

# To measure mergekit too: MERGEKIT=the bin directory of an environment that has it.
bench: .venv/run             ## Every figure of docs/measurements/speed.md (needs XFT_BENCH_DATA and XFT_BENCH_PROBLEMS, see there)
	$(BIN)/python -m performance.upcycle $(if $(MERGEKIT),--mergekit $(MERGEKIT))
	$(BIN)/python -m performance.merge $(if $(MERGEKIT),--mergekit $(MERGEKIT))
	$(BIN)/python -m performance.prepare $(XFT_BENCH_DATA)
	$(BIN)/python -m performance.mixing_step
	$(BIN)/python -m performance.moe_step
	$(if $(XFT_BENCH_DATA),$(BIN)/python -m performance.sft $(XFT_BENCH_DATA))
	$(if $(XFT_BENCH_PROBLEMS),$(BIN)/python -m performance.generation $(XFT_BENCH_PROBLEMS))
	$(BIN)/python -m performance.starting

bench-gpu: .venv/run         ## Training steps and their memory on an accelerator, for two model shapes
	$(BIN)/python -m performance.gpu --shape 135M
	$(BIN)/python -m performance.gpu --shape 1.3B

# Grading runs programs that a model wrote, in a bubblewrap sandbox. Without bubblewrap, only the demo runs, with a warning.
sandbox:
	@command -v bwrap >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		{ apt-get update -qq && apt-get install -y -qq bubblewrap; } >/dev/null 2>&1; } || \
		echo "bubblewrap is not installed (Debian, Ubuntu: sudo apt-get install bubblewrap): grading is not sandboxed."

chromium:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1; } || \
		echo "chromium is not installed (Debian: sudo apt-get install chromium): the tests in a browser will fail."

ceph:
	@command -v radosgw >/dev/null && command -v ceph-osd >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends radosgw ceph-mon ceph-osd ceph-common; } \
			>/dev/null 2>&1; } || \
		echo "Ceph is not installed (Debian: sudo apt-get install radosgw ceph-mon ceph-osd ceph-common): its tests are skipped."

toolchains:                  ## Debian packages for the eleven languages of MultiPL-E (as root; missing languages are skipped)
	apt-get update -qq && apt-get install -y --no-install-recommends nodejs node-typescript g++ libssl-dev \
		default-jdk-headless libjavatuples-java rustc golang-go php-cli ruby ruby-test-unit lua5.4 lua-unit \
		perl libtest-deep-perl

# The pip that comes with Python 3.11 takes three times as long to resolve versions.
.venv/bin/pip:
	$(PYTHON) -m venv --upgrade-deps .venv

.venv/run: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv (some minutes the first time)"
	@$(INSTALL) . && touch $@
	@$(COMPILE)

.venv/test: pyproject.toml constraints.txt | .venv/bin/pip
	@echo "Installing into .venv (some minutes the first time)"
	@$(INSTALL) ".[test,check,docs,gguf,lm-eval]" && touch .venv/run $@
	@$(COMPILE)

.venv/docs: pyproject.toml constraints.txt .venv/run
	@$(INSTALL) ".[docs]" && touch $@

clean:
	rm -rf .venv .xft .downloads site
