# Needs Python 3.11, 3.12 or 3.13, git and make; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Often set in containers. Then every process would compile 3,500 files again, which is more than half of its start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test stress clusters lint format tensorboard

help:
	@echo "make setup        install the pinned versions into .venv (the others do it when needed)"
	@echo "make demo         draw the shapes data set and train a small SPP-net on it: about 3 minutes on 2 cores"
	@echo "make test         run all tests"
	@echo "make stress       kill 10 small runs 30 times, and compare bit for bit: about 10 minutes"
	@echo "make clusters     train in jobs of a SLURM on this machine, which are preempted and killed: about 10 minutes"
	@echo "make lint         check formatting, lint and types"
	@echo "make format       format the code"
	@echo "make tensorboard  look at the runs in a browser"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("error: Python %d.%d at %s: sppnet needs 3.11, 3.12 or 3.13; choose one with make PYTHON=..." % (*v, sys.executable))'
	@echo "installing into .venv (once, until pyproject.toml or constraints.txt changes)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)

demo: setup
	@$(BIN)/python scripts/train.py experiment=demo

# One thread in each process, as there is one for every core.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

stress: setup
	$(BIN)/python scripts/stress.py

clusters: setup
	$(BIN)/python scripts/clusters.py slurm

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tensorboard: setup
	$(BIN)/tensorboard --logdir runs
