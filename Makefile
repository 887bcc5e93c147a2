# Two commands for a fresh machine: `make demo` and `make test`. Each makes its own .venv first.
# PYTHON chooses the interpreter, TORCH_INDEX the address of torch wheels without CUDA. TORCH=cuda
# makes the image for GPUs.
# MINIMUM_TORCH is the torch of test-minimum, TESTS the part that it and test-newest run.
# CONTAINER_BUILD is what builds an image: `docker build` or `podman build`.
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
TORCH ?= cpu
MINIMUM_TORCH ?= $(shell sed -n 's/^torch==//p' requirements.minimum)
TESTS ?= tests
CONTAINER_BUILD ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo podman) build
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' slimbrain_app/__init__.py)
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test test-all test-containers test-brainmarks test-minimum test-newest check check-release docs dist image lock clean

demo: demo/fmriprep/dataset_description.json
	$(BIN)/slimbrain demo/fmriprep demo/slimbrain participant
	@echo "Open demo/slimbrain/sub-01.html in a browser."

# Written last by the simulator, so a half-made dataset is made anew.
demo/fmriprep/dataset_description.json: | $(VENV)/.ready
	rm -rf demo/fmriprep
	$(BIN)/slimbrain-tools simulate demo/fmriprep

test: check
	$(BIN)/pytest -n 2 --dist loadfile

test-all: check $(VENV)/.ready-docs
	$(BIN)/pytest -n 2 --dist loadfile -m 'not containers and not brainmarks'

# Each kind of test is left out where its program isn't there.
test-containers: $(VENV)/.ready-dev
	CONTAINER_BUILD='$(CONTAINER_BUILD)' $(BIN)/pytest -m containers

# In an environment of its own, since the suite wants an older setuptools than torch does.
test-brainmarks: build/brainmarks/.ready
	build/brainmarks/bin/pytest -m brainmarks tests/brainmarks

# The oldest dependencies that pyproject.toml allows, and the newest there are.
test-minimum test-newest: test-%: build/%/.ready-dev
	build/$*/bin/pytest -n 2 --dist loadfile $(TESTS)

# Offline; the page to begin with is build/docs/index.html.
docs: $(VENV)/.ready-docs
	$(BIN)/sphinx-build -q -W --keep-going -n -c docs -d build/doctrees . build/docs

image:
	$(CONTAINER_BUILD) --tag slimbrain:$(VERSION)$(if $(filter cuda,$(TORCH)),-cuda) \
	    --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
	    --build-arg TORCH=$(TORCH) --build-arg TORCH_INDEX=$(TORCH_INDEX) .

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

$(VENV)/.ready-docs: $(VENV)/.ready
	$(PIP) install -q --constraint requirements.lock --editable '.[docs]'
	touch $@

build/brainmarks/.ready: pyproject.toml requirements.lock
	$(PYTHON) -m venv --clear build/brainmarks
	build/brainmarks/bin/python -m pip install -q --constraint requirements.lock $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	build/brainmarks/bin/python -m pip install -q cloudpathlib datasets einops omegaconf pycortex tabulate
	build/brainmarks/bin/python -m pip install -q --no-deps brainmarks==0.1.1
	touch $@

build/minimum/.ready-dev: pyproject.toml requirements.minimum
	$(PYTHON) -m venv --clear build/minimum
	sed 's/^torch==.*/torch==$(MINIMUM_TORCH)/' requirements.minimum > build/minimum/constraints.txt
	build/minimum/bin/python -m pip install -q --constraint build/minimum/constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	touch $@

build/newest/.ready-dev: pyproject.toml
	$(PYTHON) -m venv --clear build/newest
	build/newest/bin/python -m pip install -q $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[dev]'
	touch $@

# The workflows of .github and the citation file, against their schemas and for known weaknesses.
check-release:
	$(PYTHON) -m venv --clear build/check-release
	build/check-release/bin/python -m pip install -q check-jsonschema zizmor
	build/check-release/bin/zizmor --offline .github
	build/check-release/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	build/check-release/bin/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/*.yml
	$(PYTHON) -m venv --clear build/cffconvert
	build/cffconvert/bin/python -m pip install -q 'cffconvert>=2'
	build/cffconvert/bin/cffconvert --validate

# What a release uploads, checked as the package index does.
dist:
	rm -rf dist
	$(PYTHON) -m venv --clear build/dist
	build/dist/bin/python -m pip install -q build twine
	build/dist/bin/python -m build --outdir dist .
	build/dist/bin/twine check --strict dist/*
	@ls -l dist

# Take the newest versions that pyproject.toml allows and write them down.
lock:
	$(PYTHON) -m venv --clear build/lock
	build/lock/bin/python -m pip install -q 'torch==2.13.0' $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) '.[dev,docs]'
	build/lock/bin/python -m pip freeze --exclude slimbrain | sed 's/+cpu//' > requirements.lock

clean:
	rm -rf $(VENV) demo build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
