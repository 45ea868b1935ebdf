# Python >= 3.11 and make are all it needs: the first target that needs packages puts the exact
# versions of requirements.lock into .venv.
#
#   PYTHON=python3.12   the interpreter that .venv is made with
#   TORCH_INDEX=https://download.pytorch.org/whl/cpu   a smaller torch, for Linux without a GPU
#   LAB_ARGS=--no-browser   passed on to JupyterLab

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION := 2.13.0

FIRST := 00_start_here.ipynb
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
EXTRA_INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)
IN_PARALLEL := -n 2
heading = @printf '\n==== %s ====\n' '$(1)'

define check_python
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo 'initlab needs Python 3.11 or newer; $(PYTHON) is not: make PYTHON=python3.12 …' >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help lab test lint unit nbval browser notebooks bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	  while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

lab: $(INSTALLED) ## open JupyterLab on the first notebook
	$(BIN)/jupyter lab $(AS_ROOT) --ServerApp.root_dir=notebooks \
	  --LabApp.default_url=/lab/tree/$(FIRST) $(LAB_ARGS)

test: lint unit nbval browser ## everything that CI runs (make -k test goes on after a failure)

lint: $(INSTALLED) ## ruff (style and format, notebooks too) and pyright
	$(call heading,lint: ruff and pyright)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(INSTALLED) ## unit tests, published results, the examples in docstrings
	$(call heading,unit: package and truth and doctests)
	$(BIN)/python -m pytest -q $(IN_PARALLEL) --ignore=tests/browser

nbval: $(INSTALLED) ## re-run the notebooks and compare with their saved outputs
	$(call heading,nbval: notebooks against their saved outputs)
	$(BIN)/python -m pytest -q $(IN_PARALLEL) --dist loadfile \
	  --nbval --nbval-current-env --nbval-cell-timeout=120 notebooks

browser: $(INSTALLED) ## the notebooks in JupyterLab in a real Chromium
	$(call heading,browser: notebooks in JupyterLab in Chromium)
	$(BIN)/python -m pytest -q -rs tests/browser

notebooks: $(INSTALLED) ## re-execute all notebooks and save them with their outputs
	$(BIN)/python tests/notebooks/execute.py notebooks/*.ipynb
	$(BIN)/ruff format notebooks

bench: $(INSTALLED) ## print the benchmarks
	@set -e; for script in benchmarks/*.py; do \
	  printf '\n==== %s ====\n' "$$script"; $(BIN)/python "$$script"; done

lock: ## write requirements.lock anew, with the newest versions of all but torch
	@$(check_python)
	@set -e; fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(PYTHON) -m venv "$$fresh"; \
	"$$fresh/bin/python" $(PIP_INSTALL) $(EXTRA_INDEX) \
	  torch==$(TORCH_VERSION) setuptools '.[lab,test,dev]'; \
	{ echo '# Exact versions for Linux with Python 3.11 to 3.13: what make, CI and the tests install.'; \
	  echo '# Regenerate with: make lock'; \
	  "$$fresh/bin/python" -m pip freeze --all | grep -viE '^(pip|initlab)[ =]' | \
	    grep -viE '^(nvidia-|cuda-|triton=)' | sed 's/+cpu$$//'; } > "$$fresh/requirements.lock"; \
	cp "$$fresh/requirements.lock" requirements.lock

clean: ## back to a fresh clone: removes .venv, caches, screenshots, builds
	rm -rf $(VENV) dist build tests/browser/screenshots .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	find . -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(INSTALLED): requirements.lock pyproject.toml binder/overrides.json
	@$(check_python)
	$(call heading,set-up: exact versions into $(VENV))
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) $(EXTRA_INDEX) -r requirements.lock
	$(BIN)/python $(PIP_INSTALL) --no-deps -e .
	@mkdir -p $(LAB_SETTINGS) && cp binder/overrides.json $(LAB_SETTINGS)/
	@touch $@
