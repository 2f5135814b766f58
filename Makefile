# make demo   trains teacher and student on the embedded phantom and scores both
# make test   formatter, linter, type checker, fast tests
# make test-all  the same with all tests: kills, several processes, whole data sets, the built wheel
# make parity compares with nnU-Net itself in an environment of its own (PyTorch; up to half an hour on two cores)
# make kills  kills the preparation of cases at 20 random moments and compares what the last run leaves, byte by byte
# make benchmark measures this code beside PyTorch, nnU-Net and MONAI (same environment; the machine should be idle)
# make docs   builds the documentation into build/docs, with warnings as errors
# Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
RUN := runs/demo
# One stamp per Python version: another interpreter makes another environment.
READY := $(VENV)/.ready-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

ORIGINALS := .venv-parity
.PHONY: demo test test-all lint format audit kills parity benchmark docs clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "kd_jax needs Python 3.11 or newer, and $(PYTHON) is older or not there: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(VENV)/bin/kd-jax train --run $(RUN) --overwrite
	$(VENV)/bin/kd-jax evaluate $(RUN) --network all
	@echo "Pictures: $(RUN)/progress.png and $(RUN)/evaluation/validation/cases.png"
	@echo "A patient of your own: $(VENV)/bin/kd-jax predict $(RUN) PATIENT_FOLDER -o OUT"

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

test: lint
	$(VENV)/bin/python -m pytest -n 2 -m "not slow"

test-all: lint
	$(VENV)/bin/python -m pytest -n 2

audit: $(READY)
	$(VENV)/bin/kd-jax phantom .cache/audit --cases 20 --seed 0
	$(VENV)/bin/kd-jax phantom .cache/audit --audit

kills: $(READY)
	KD_JAX_KILLS=20 $(VENV)/bin/python -m pytest -n 0 -s tests/data_pipeline/test_prepare_killed.py

$(ORIGINALS)/.ready: pyproject.toml constraints.txt experiments/parity/requirements.txt experiments/benchmark/requirements.txt
	$(PYTHON) -m venv --clear $(ORIGINALS)
	$(ORIGINALS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0 -e '.[dev]'
	$(ORIGINALS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  -r experiments/parity/requirements.txt -r experiments/benchmark/requirements.txt
	@touch $@

parity: $(ORIGINALS)/.ready
	$(ORIGINALS)/bin/python -m experiments.parity

benchmark: $(ORIGINALS)/.ready
	-$(ORIGINALS)/bin/kd-jax native  # without a C++ compiler it is measured without the compiled operators
	$(ORIGINALS)/bin/python -m experiments.benchmark --json runs/benchmark.json --plot runs/benchmark.png

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict
	@echo "Open build/docs/index.html"

format: $(READY)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

clean:
	rm -rf $(VENV) $(ORIGINALS) .cache build *.egg-info
