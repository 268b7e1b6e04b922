# `make` lists what there is. Everything runs in $(VENV), which is made when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
CONFIG ?= data/configs/tiny/comparison.yaml
# Stages at a time; the cores are shared among them.
JOBS ?= 2
# Where PyTorch is taken from. Empty: the usual index, whose wheel for Linux brings CUDA libraries of several GB.
# Without a GPU: make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

bin := $(VENV)/bin
ready := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help install report reports lint quick test slow full seeds base instruct smollm2 bench export readme recount map docs clean

help: ## this list
	@sed -n 's/^\([a-z0-9]*\):[^#]*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf '  make %-8s %s\n' "$$name" "$$text"; done

install: $(ready) ## the environment alone

# PyTorch first and alone, so that TORCH_INDEX serves nothing else; what it needs comes with the rest.
$(ready): constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit("prefkit needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(bin)/python || "$(PYTHON)" -m venv $(VENV)
	$(bin)/python -m pip install -q -c constraints.txt --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(bin)/python -m pip install -q -c constraints.txt --use-pep517 -e ".[dev,docs]"
	@touch $@

report: $(ready) ## run the experiment CONFIG and write its report page
	$(bin)/prefkit run $(CONFIG) --jobs $(JOBS)
	$(bin)/prefkit report $(CONFIG)

reports: $(ready) ## every page that is drawn from committed results, into data/runs/reports/ (a minute)
	@$(bin)/python tools/reports.py

lint: $(ready) ## ruff check, ruff format, types (seconds)
	@$(bin)/python tools/test.py lint

quick: $(ready) ## lint, and the tests of losses, engine, data, configs and one pipeline (a minute and a half)
	@$(bin)/python tools/test.py quick

test: $(ready) ## lint, export and clean, pytest without the slow tests (8 minutes)
	@$(bin)/python tools/test.py test

slow: $(ready) ## every lesson from top to bottom, and the tests marked slow: whole experiments, measured memory, kills
	@$(bin)/python tools/test.py slow

full: $(ready) ## all of it (25 minutes)
	@$(bin)/python tools/test.py full

seeds: $(ready) ## the comparison with five seeds, into data/results/seeds/ (half an hour)
	$(bin)/prefkit seeds data/configs/tiny/comparison.yaml --seeds 0,1,2,3,4 --jobs $(JOBS) --lines

base: $(ready) ## pretrain the base model of the tiny world and put it under data/tiny/base (minutes)
	$(bin)/prefkit run data/configs/tiny/base.yaml
	cp data/runs/base/pretrain/checkpoint/* data/tiny/base/

instruct: $(ready) ## train tiny-instruct, which reports are measured against, and put it under data/tiny/instruct (20 minutes)
	$(bin)/prefkit run data/configs/tiny/instruct.yaml
	mkdir -p data/tiny/instruct && cp data/runs/instruct/rloo/checkpoint/* data/tiny/instruct/

smollm2: $(ready) ## SmolLM2-135M-Instruct into data/models/smollm2: 93 MB to fetch, 540 MB when converted (a minute)
	$(bin)/python -m pip install -q -c constraints.txt --use-pep517 -e ".[gguf]"
	$(bin)/prefkit model smollm2

bench: $(ready) ## training steps beside the naive way and TRL's, into data/results/bench/cpu.json (forty minutes)
	$(bin)/python tools/bench.py cpu

export: $(ready) ## after editing a notebook: write prefkit/ and clean the notebooks
	$(bin)/python tools/export.py

readme: $(ready) ## home page with its picture and table, README.md from it, the map, syllabus and glossary
	$(bin)/python tools/syllabus.py
	$(bin)/python tools/home.py
	$(bin)/python tools/colab.py
	$(bin)/python tools/map.py --table
	$(bin)/python tools/readme.py

recount: $(ready) ## which of the reports' tables and figures stand on their pages
	$(bin)/python tools/coverage.py

map: $(ready) ## measure every notebook (minutes), then as readme
	$(bin)/python tools/map.py
	$(bin)/python tools/readme.py

docs: $(ready) ## the web site in _docs/: lessons as stored, reports from committed results (three minutes)
	$(bin)/python tools/docs.py

clean: ## remove what the commands above made, the runs under data/ excepted
	rm -rf $(VENV) _proc _docs build prefkit.egg-info .pytest_cache .ruff_cache .hypothesis
