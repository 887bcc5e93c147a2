# Two commands for a fresh machine: `make demo` and `make test`. Each makes its own .venv first.
# PYTHON chooses the interpreter, TORCH_INDEX the address of torch wheels without CUDA.
# CONTAINER_BUILD is what builds an image: `docker build` or `podman build`.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
CONTAINER_BUILD ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman) build
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' slimbrain_app/__init__.py)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all test-containers check image lock clean

demo: demo/fmriprep/dataset_description.json
	$(BIN)/slimbrain demo/fmriprep demo/slimbrain participant
	@echo "Open demo/slimbrain/sub-01.html in a browser."

# Written last by the simulator, so a half-made dataset is made anew.
demo/fmriprep/dataset_description.json: | $(VENV)/.ready
	rm -rf demo/fmriprep
	$(BIN)/slimbrain-tools simulate demo/fmriprep

test: check
	$(BIN)/pytest -n 2 --dist loadfile

test-all: check
	$(BIN)/pytest -n 2 --dist loadfile -m 'not containers'

# Each kind of test is left out where its program isn't there.
test-containers: $(VENV)/.ready-dev
	CONTAINER_BUILD='$(CONTAINER_BUILD)' $(BIN)/pytest -m containers

image:
	$(CONTAINER_BUILD) --tag slimbrain:$(VERSION) --build-arg VERSION=$(VERSION) \
	    --build-arg REVISION=$$(git rev-parse HEAD) --build-arg TORCH_INDEX=$(TORCH_INDEX) .

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(VENV)/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --constraint requirements.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) install -q --constraint requirements.lock --editable '.[dev]'
	touch $@

# Take the newest versions that pyproject.toml allows and write them down.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install -q 'torch==2.13.0' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '.[dev]'
	build/lock/bin/python -m pip freeze --exclude slimbrain | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
