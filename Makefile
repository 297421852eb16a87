# SPDX-License-Identifier: Apache-2.0
# The commands of the workspace. Each brings the set-up up to date first; what is up to date costs nothing.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# What `make demo`, `make bench` and `make test` understand, on the command line or from the environment.
export DATA DURATION TRANSPORT BUNDLE REPORT SYMBOLS PACE SEED EPOCHS LIMIT RUN_DIR ARGS NAME JSON PACKAGES MINUTES

.PHONY: help setup rknn build demo test lint format bench fuzz docs picture clean distclean

help: ## show this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: ## create .venv with the pinned packages and build the workspace (PYTHON=python3.12 chooses one)
	@exec scripts/setup.sh

rknn: setup ## install the toolkit of the RK3568's NPU into .venv-rknn, for heqis convert
	@exec scripts/rknn.sh

build: setup ## build every package again
	@exec scripts/build.sh --all

demo: setup ## run the whole graph: DATA= DURATION= TRANSPORT=zmq|dds BUNDLE= REPORT= SYMBOLS= PACE= SEED= EPOCHS= LIMIT= RUN_DIR= ARGS=
	@exec scripts/demo.sh

test: setup ## run every test and gate, and end with one line: N passed, N failed (PACKAGES="heqis_core ...")
	@exec scripts/test.sh

lint: setup ## run the gates alone: format, lint, types, architecture, shell, Docker files, package.xml, docs
	@exec scripts/lint.sh

format: setup ## format the sources and sort their imports
	@exec scripts/lint.sh --fix

bench: setup ## run a benchmark: NAME=transport JSON=file.json ARGS= (all of them without NAME)
	@exec scripts/bench.sh

fuzz: setup ## damage data files and link messages for MINUTES=10 each and hold the readers to what must be true
	@. scripts/env.sh && nice -n 19 python scripts/fuzz_readers.py --minutes "$${MINUTES:-10}" && \
	  exec nice -n 19 python scripts/fuzz_wire.py --minutes "$${MINUTES:-10}" --coverage 200000

docs: setup ## write the generated parts of docs/
	@exec scripts/docs.sh

picture: setup ## take docs/page.png from the page of a running graph (needs Chromium)
	@exec scripts/picture.sh

clean: ## remove what was built and what runs left behind
	@rm -rf build install log run output .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find src scripts benchmarks \( -name __pycache__ -o -name .hypothesis \) -type d -prune -exec rm -rf {} + 2> /dev/null || true

distclean: clean ## remove the environments too
	@rm -rf .venv .venv-rknn
