# `make` alone lists the targets. Every target that needs it first makes .venv, and makes it again only
# when settings.ini or setup.py changed. Another Python: `make test PYTHON=python3.12`.
.DEFAULT_GOAL := help
.PHONY: help demo real test test-slow lab app docs clean
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUNS   := train_siamese|train_meta|evaluate_meta|real_xrays|compare
LAB    ?=
REAL   ?=
APP    ?=
export PYDEVD_DISABLE_FILE_VALIDATION := 1

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): settings.ini setup.py
	@command -v "$(PYTHON)" >/dev/null || { echo "smlxray needs Python 3.10 or newer, but there is no '$(PYTHON)' here: say which one with 'make PYTHON=/path/to/python'." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "smlxray needs Python 3.10 or newer, but '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1): say another with 'make PYTHON=python3.12'." >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)
	@echo "Installing smlxray and its packages into $(VENV) (once; torch is large, so this takes some minutes)."
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --quiet -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## make synthetic X-rays, train, meta-train, evaluate and print the table (minutes; nothing is downloaded but packages)
	mkdir -p runs/demo
	$(BIN)/papermill nbs/train_siamese.ipynb runs/demo/train_siamese.ipynb -p preset demo
	$(BIN)/papermill nbs/train_meta.ipynb runs/demo/train_meta.ipynb -p preset demo
	$(BIN)/papermill nbs/evaluate_meta.ipynb runs/demo/evaluate_meta.ipynb -p preset demo
	@$(BIN)/python -c "from smlxray.evaluate import print_results; print_results('runs/demo')"

real: $(STAMP)  ## run the study on the X-rays in ../shared/realcxr and write nbs/real_xrays.json; may be killed and goes on (more: make real REAL='--full' or '--folds 2')
	OMP_NUM_THREADS=1 $(BIN)/python -c 'from smlxray.study import main; main()' $(REAL)

test: $(STAMP)  ## run every check: notebooks, modules, chapters, runs, site, tests
	$(BIN)/python -m smlxray.site check-directives
	$(BIN)/python -m smlxray.site check-exports
	$(BIN)/python -m smlxray.site check-clean
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --timing --skip_file_re '^[_.]|^($(RUNS))[.]ipynb$$'
	$(BIN)/python -m smlxray.site check-runs
	$(BIN)/python -m smlxray.site check-site
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -n 2 --dist loadfile

test-slow: $(STAMP)  ## run the slow tests too (minutes to three quarters of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m slow

lab: $(STAMP)  ## open JupyterLab on the notebooks (more options: make lab LAB='--no-browser --port 9999')
	$(BIN)/jupyter lab nbs $(LAB)

app: $(STAMP)  ## serve the pages on this machine, on phantoms (others: make app APP='--run demo --port 8900')
	$(BIN)/smlxray app $(APP)

docs: $(STAMP)  ## write README.md and the site in _docs/ from the notebooks
	$(BIN)/python -m smlxray.site readme
	$(BIN)/python -m smlxray.site build

clean:  ## remove what tools left behind (never .venv, data/ or runs/)
	rm -rf _docs _proc _site build dist .pytest_cache smlxray/_presets smlxray/_notebooks
	find nbs smlxray tests config -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +
