# `make help` lists the targets. On the command line one may set:
#   PYTHON       the interpreter to make .venv with (3.11 to 3.13)
#   TORCH_INDEX  the package index to take torch's CPU build from; empty: wherever pip is set up to look
#   RUN_ARGS     more for `rlhf-lab run`, such as RUN_ARGS="-p seed=1"
#   LAB_ARGS     more for JupyterLab, such as LAB_ARGS=--no-browser
#   TEST_ARGS    more for pytest, such as TEST_ARGS="tests/maths -x"

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.rlhf_lab-installed
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

# Tests reach no network, whatever the machine they run on is set up for.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=disabled \
	MPLBACKEND=Agg TOKENIZERS_PARALLELISM=false OMP_WAIT_POLICY=PASSIVE

.DEFAULT_GOAL := help
.PHONY: help install run lab test test-slow test-all check format docs docs-links studies doctor clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-10s %s\n' "$$name" "$$text"; done

run: $(STAMP) ## install, then run the quickstart: minutes later there is a report to open
	$(BIN)/rlhf-lab run experiments/quickstart.yaml $(RUN_ARGS)

lab: $(STAMP) ## open the notebooks in JupyterLab
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (rlhf_lab)" >/dev/null
	@if git rev-parse --git-dir >/dev/null 2>&1; then $(BIN)/nbstripout --install; fi
	RLHF_LAB_RUNS="$(CURDIR)/runs" $(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks $(LAB_ARGS)

test: $(STAMP) ## the tests, offline, some minutes
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(TEST_ARGS)

test-slow: $(STAMP) ## only the tests that are too slow for `make test`
	$(OFFLINE) $(BIN)/python -m pytest -q -m slow $(TEST_ARGS) || [ $$? -eq 5 ] # 5: there are none

test-all: check test test-slow ## everything that CI runs

check: $(STAMP) ## lint and format of code and notebooks; notebooks hold no outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@for notebook in $(NOTEBOOKS); do \
		$(BIN)/nbstripout --verify "$$notebook" || { echo "$$notebook holds outputs: make format"; exit 1; }; done

format: $(STAMP) ## mend what `make check` finds, where a tool can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(NOTEBOOKS),$(BIN)/nbstripout $(NOTEBOOKS))

docs: $(STAMP) ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

docs-links: $(STAMP) ## ask every link to another site whether it is alive; needs a network
	$(BIN)/sphinx-build -b linkcheck docs docs/_build/links

# One seed of reward_models at a time: two would both make the base models that all of them start from.
studies: $(STAMP) ## record what is missing of the studies over five seeds: hours
	for file in experiments/studies/*.yaml; do \
		case $$file in */reward_models.yaml) jobs=1;; *) jobs=2;; esac; \
		$(BIN)/rlhf-lab run $$file -j $$jobs || exit 1; \
	done

doctor: $(STAMP) ## look for what may be wrong with the installation
	$(BIN)/rlhf-lab doctor

install: $(STAMP) ## make .venv and install the package into it

clean: ## remove caches and build products; runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis docs/_build docs/api/*.rst
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	@if [ -x $(BIN)/nbstripout ]; then $(BIN)/nbstripout --uninstall 2>/dev/null || true; fi # it lives in .venv
	rm -rf $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV); this takes some minutes"
	@$(BIN)/python -I rlhf_lab/workbench/install_torch.py constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed; name one by PYTHON=, as in: make run PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no virtual environment could be made; Debian and Ubuntu: apt install python3-venv"; exit 2; }
