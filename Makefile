# make quickstart   install lipctrl into .venv and run its main job
# make test         install what the tests need and run them
#
# Both need Python >= 3.11 and git, and do all of their own set-up; the second run starts at once.
# PYTHON=python3.12 names the Python to build .venv with, JOBS=4 the number of test processes.

JOBS ?= 2
PYTHON ?=
TESTS ?= tests

ENVIRONMENT := .venv
SCRIPTS := $(ENVIRONMENT)/bin
INPUTS := pyproject.toml constraints.txt .ci/install

.PHONY: quickstart test lint types docs clean

quickstart: $(ENVIRONMENT)/installed
	$(SCRIPTS)/lipctrl quickstart

test: $(ENVIRONMENT)/installed-dev
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	  $(SCRIPTS)/python -m pytest -n $(JOBS) --dist worksteal $(TESTS)

lint: $(ENVIRONMENT)/installed-dev
	$(SCRIPTS)/ruff check .
	$(SCRIPTS)/ruff format --check .
	$(SCRIPTS)/lint-imports --no-cache

types: $(ENVIRONMENT)/installed-dev
	$(SCRIPTS)/mypy
	$(SCRIPTS)/pyright

docs: $(ENVIRONMENT)/installed-dev
	$(SCRIPTS)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

$(ENVIRONMENT)/installed: $(INPUTS)
	PYTHON="$(PYTHON)" sh .ci/install $(ENVIRONMENT)

$(ENVIRONMENT)/installed-dev: $(INPUTS)
	PYTHON="$(PYTHON)" sh .ci/install $(ENVIRONMENT) dev

clean:
	rm -rf $(ENVIRONMENT) build dist docs/_build docs/generated lipctrl.egg-info
