# `make` alone lists the targets. Every target that needs it first makes .venv, and makes it again
# only when settings.ini, setup.py or the tested versions changed.
#   make test PYTHON=python3.12     another Python, 3.10 or newer
#   make test TORCH_INDEX=URL       torch from another index; empty: the default build
#   make test CONSTRAINTS=          the newest versions that fit, instead of the tested ones
.DEFAULT_GOAL := help
.PHONY: help install demo seeds example real test test-slow fuzz torture coverage scale .runs .others lab app docs export clean
SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SITE   := $(BIN)/python -m smlxray.site
RUNS   := train_siamese|train_meta|evaluate_meta|real_xrays|compare
SLOW    = $(shell grep -l '^    "\#| slow' nbs/*.ipynb)
LOGS   := build/test
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
LAB    ?=
REAL   ?=
APP    ?=
FUZZ   ?=
export PYDEVD_DISABLE_FILE_VALIDATION := 1

# phantoms that many chapters and tests ask for are drawn once per `make test`
PHANTOMS := $(LOGS)/phantoms
test test-slow: export SMLXRAY_PHANTOMS := $(CURDIR)/$(PHANTOMS)

# print what a line says and keep it, for the times at the end
keep = 2>&1 | tee $(LOGS)/$(1).log

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): settings.ini setup.py constraints.txt .ci/install.py
	@command -v "$(PYTHON)" >/dev/null || { echo "smlxray needs Python 3.10 or newer, but there is no '$(PYTHON)' here: say which one with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "smlxray needs Python 3.10 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): say another with 'make PYTHON=python3.12'." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@echo "Installing smlxray and its packages into $(VENV) (once; this takes some minutes)."
	@$(BIN)/python .ci/install.py $(VENV)
	@touch $@

install: $(STAMP)  ## make .venv, and nothing else (some minutes)

demo: $(STAMP)  ## train and evaluate on synthetic X-rays and print the table (about 10 minutes)
	mkdir -p runs/demo
	$(BIN)/papermill nbs/train_siamese.ipynb runs/demo/train_siamese.ipynb -p preset demo
	$(BIN)/papermill nbs/train_meta.ipynb runs/demo/train_meta.ipynb -p preset demo
	$(BIN)/papermill nbs/evaluate_meta.ipynb runs/demo/evaluate_meta.ipynb -p preset demo
	@$(BIN)/python -c "from smlxray.evaluate import print_results; print_results('runs/demo')"

seeds: $(STAMP)  ## run the demo with three seeds and write nbs/demo_seeds.json (half an hour)
	@for seed in 0 1 2; do $(BIN)/smlxray demo -p seed $$seed -p run seed$$seed || exit 1; done
	@$(BIN)/python -c "from smlxray.evaluate import write_claims; write_claims([f'runs/seed{k}' for k in range(3)], 'nbs/demo_seeds.json')"

example: $(STAMP)  ## train the small run that ships with the pages and pack it (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/smlxray run --config config/example.yaml
	@$(BIN)/python -c "from pathlib import Path; from smlxray.app.nursery import pack_example; pack_example(Path('runs/example'), Path('config/example'))"

real: $(STAMP)  ## run the study on real X-rays; resumes if interrupted (options: REAL='--folder PATH')
	OMP_NUM_THREADS=1 $(BIN)/smlxray study $(REAL)

test: $(STAMP)  ## run all checks and tests, and show where the time went (about 12 minutes)
	@mkdir -p $(LOGS) && rm -rf $(LOGS)/*.log $(PHANTOMS) && touch $(LOGS)/start.log
	$(SITE) check-directives $(call keep,directives)
	$(SITE) check-exports $(call keep,exports)
	$(SITE) check-clean $(call keep,clean)
	$(BIN)/ruff check . $(call keep,ruff)
	$(SITE) check-style $(call keep,style)
	@$(MAKE) --no-print-directory --jobs 2 .runs .others
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q $(PARALLEL) --durations 20 $(call keep,tests)
	@$(SITE) slowest

.runs:  # one notebook after the other, and meanwhile what stands below
	OMP_NUM_THREADS=1 $(SITE) check-runs $(call keep,runs)

.others:
	$(BIN)/mypy --config-file tests/mypy.ini $(call keep,mypy)
	$(BIN)/python tests/pythons.py $(call keep,pythons)
	$(SITE) check-site $(call keep,site)
	$(SITE) check-dist $(call keep,dist)
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^[_.]|^($(RUNS))[.]ipynb$$' $(call keep,chapters)

test-slow: $(STAMP)  ## run the slow tests and the slow cells of the chapters (up to 45 minutes)
	@rm -rf $(PHANTOMS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m slow $(PARALLEL) --durations 20
	@for nb in $(SLOW); do echo "$$nb"; OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path "$$nb" --flags slow || exit 1; done

fuzz: $(STAMP)  ## try 20,000 mutated inputs on all readers (10 minutes; options: FUZZ='--seed 1')
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py $(FUZZ)

torture: $(STAMP)  ## kill every long command at random moments and compare the results (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_torture.py -q -s -m slow

scale: $(STAMP)  ## take CheXpert's number of X-rays through all steps, into nbs/scale.json (hours)
	OMP_NUM_THREADS=1 $(BIN)/python tests/scale.py --resnet50 2000 --out nbs/scale.json

coverage: $(STAMP)  ## ask the intervals about 20,000 worlds and write nbs/coverage.json (10 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/coverage.py --out nbs/coverage.json

lab: $(STAMP)  ## open the notebooks in JupyterLab (options: LAB='--no-browser --port 9999')
	$(BIN)/jupyter lab nbs $(LAB)

app: $(STAMP)  ## open the pages in a browser, on synthetic X-rays (options: APP='--run demo')
	$(BIN)/smlxray app $(APP)

docs: $(STAMP)  ## write README.md and the site in _docs/ from the notebooks
	$(SITE) readme
	$(SITE) build

export: $(STAMP)  ## write smlxray/ from the notebooks and clean them, before you commit
	$(SITE) export

clean:  ## remove what tools left behind (never .venv, data/ or runs/)
	rm -rf _docs _proc _site build dist .pytest_cache .ruff_cache .mypy_cache smlxray/_presets smlxray/_notebooks
	find nbs smlxray tests config -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
