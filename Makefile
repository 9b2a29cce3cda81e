# The two commands of a newcomer: `make run` and `make test`. Everything lands below .venv and .maskmill, which git ignores.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# A process per core, up to four, a file of tests in one; each computes with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test faults check check-tests install install-test install-all ui lock sbom clean
.DEFAULT_GOAL := run

run: $(VENV)/installed            ## from text to a registered masked language model
	$(BIN)/maskmill run quickstart

test: $(VENV)/installed-all       ## the whole test suite: about an hour on 2 cores
	$(PYTEST) -m ""

check-tests: $(VENV)/installed-test
	$(PYTEST) -m "not slow and not gpu"

check: check-tests              ## what .ci/run checks: lint, types, the essential tests
	$(BIN)/ruff check .
	$(BIN)/mypy

faults: $(VENV)/installed-all     ## injects every fault there is into the tiny pipeline, and fuzzes the parsers: hours
	$(BIN)/python -m tests.faults --workers 2
	$(BIN)/python -m tests.faults.fuzz

ui: $(VENV)/installed             ## the Prefect UI and the MLflow UI, on this machine
	$(BIN)/maskmill ui

install: $(VENV)/installed
install-test: $(VENV)/installed-test
install-all: $(VENV)/installed-all

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-test: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $(VENV)/installed $@

$(VENV)/installed-all: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all-tests]'
	touch $(VENV)/installed $(VENV)/installed-test $@

clean:                          ## removes the environment and everything that was made
	rm -rf $(VENV) .maskmill

lock:                           ## pins anew what the declared ranges resolve to; run the whole test suite after it
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet torch==2.13.0
	.lock/bin/python -m pip install --quiet -e '.[all-tests]'
	( echo "# Every package that an installation of maskmill pulls in, pinned: pip install -c constraints.txt -e '.[all-tests]'"; \
	  echo "# Made anew with: make lock (then run the whole test suite)"; \
	  .lock/bin/pip freeze --exclude-editable | sed 's/+cpu//' ) > constraints.txt
	rm -rf .lock

sbom: $(VENV)/installed          ## sbom.json: what is installed, as CycloneDX; online also its known vulnerabilities
	rm -rf .sbom && $(PYTHON) -m venv .sbom
	.sbom/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0 pip-audit==2.10.1
	.sbom/bin/python deployments/sbom.py --tools .sbom/bin --python $(BIN)/python; found=$$?; rm -rf .sbom; exit $$found
