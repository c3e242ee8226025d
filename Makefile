# make run and make test work as the first command in a fresh clone, with Python 3.11 to 3.13 and make alone.
PYTHON ?= python3
OUT ?= results
VENV := .venv
PY := $(VENV)/bin/python
EXTRAS := requirements/cluster.txt requirements/dev.txt
PYTEST := $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-on-demand test-all example paper figures lint bench constraints
.DEFAULT_GOAL := run

run: $(VENV)/ready          ## quick MNIST study: table, figures, one to two minutes
	$(PY) run_unlearn_mnist.py --preset quick --out $(OUT)

test: $(VENV)/ready-dev     ## all tests: a quarter of an hour on 2 cores, more at first
	$(PYTEST)

test-on-demand: $(VENV)/ready-dev ## many minutes of faults: killed, stopped, damaged and full, on processes and on a cluster
	$(PYTEST) -m on_demand

test-all:                   ## the suite under each of Python 3.11, 3.12, 3.13 that is found
	tests/every_python.sh

example: $(VENV)/ready      ## smoke test of the whole chain, under a minute
	$(PY) run_example.py

paper: $(VENV)/ready        ## the published study at its scale
	$(PY) run_unlearn_mnist.py --preset paper --out $(OUT)

figures: $(VENV)/ready      ## redraw every figure from the result files
	$(PY) findings.py figures $(OUT)

lint: $(VENV)/ready-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

bench: $(VENV)/ready-dev
	$(PY) bench/bench.py

constraints:                ## pin the exact set anew (needs uv), for all supported Pythons at once
	uv pip compile --universal --python-version 3.11 --no-emit-index-url --no-annotate --no-header \
		requirements.txt $(EXTRAS) -o constraints.txt

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; ok = (3, 11) <= sys.version_info[:2] <= (3, 13); sys.exit(not ok and f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/ready: requirements.txt constraints.txt | $(VENV)/bin/python
	$(PY) -m pip install --quiet -r requirements.txt -c constraints.txt
	touch $@

$(VENV)/ready-dev: $(EXTRAS) $(VENV)/ready
	$(PY) -m pip install --quiet -r requirements.txt $(EXTRAS:%=-r %) -c constraints.txt
	touch $@
