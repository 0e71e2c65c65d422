# make quickstart | test | lint | format | table TABLE=PAPER/NAME OUT=DIR | results | clean
#
# .venv is built when it is missing or when setup.py, constraints.txt or requirements-data.txt has
# changed. Nothing here needs root, or a network beyond the package index that pip is set up for.

# The first Python that will do; `make PYTHON=...` names another.
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
ifeq ($(origin PYTHON),undefined)
PYTHON := $(firstword $(foreach python,python3 python3.13 python3.12 python3.11,\
	$(if $(filter ok,$(shell $(python) -c '$(USABLE)' >/dev/null 2>&1 && echo ok)),$(python))))
endif

VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := PIP_CONSTRAINT=constraints.txt $(RUN) -m pip --disable-pip-version-check install --quiet
# Test processes at a time.
JOBS ?= 2
SCALE ?= bundled
OUT ?= out/$(TABLE)

.PHONY: quickstart test lint format table results readme constraints clean

quickstart: $(VENV)/.runs
	$(RUN) -m scripts.reproduce_table --table=quickstart --out=quickstart

test: lint
	$(RUN) -m pytest -n $(JOBS)

lint: $(VENV)/.tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.tests
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

table: $(VENV)/.runs
	$(if $(TABLE),,$(error TABLE is needed: make table TABLE=fedpt/emnist OUT=DIR))
	$(RUN) -m scripts.reproduce_table --table=$(TABLE) --scale=$(SCALE) --out=$(OUT)

# The numbers and the picture of README.md, anew.
results: $(VENV)/.runs
	rm -rf out/results
	$(RUN) -m scripts.reproduce_table --table=quickstart --seeds=3 --out=out/results
	mkdir -p results/quickstart
	cp out/results/table.* out/results/figure.* results/quickstart/
	$(MAKE) readme

# The generated parts of README.md: the table of methods, and the quickstart's.
readme: $(VENV)/.runs
	$(RUN) -m scripts.tables.harness.readme

# Resolves all versions anew, for every Python at once.
constraints: $(VENV)/.tests
	echo 'setuptools>=68' | $(RUN) -m uv pip compile --quiet --universal --python-version=3.11 \
		--all-extras --upgrade --no-header --no-annotate --no-emit-index-url \
		--output-file=constraints.txt setup.py -

$(VENV)/.runs: setup.py constraints.txt requirements-data.txt
	@$(or $(PYTHON),false) -c '$(USABLE)' || { echo "error: $(or $(PYTHON),no python3 here) is no \
	Python of 3.11 or newer with venv and ensurepip; name one: make PYTHON=/path/to/python3.12" \
	| tr -s '[:blank:]' ' ' >&2; exit 2; }
	@echo "Building $(VENV): about 1 GB, a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable .
	$(INSTALL) --no-deps --requirement requirements-data.txt
	touch $@

$(VENV)/.tests: $(VENV)/.runs
	$(INSTALL) --editable '.[speech,submit,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
