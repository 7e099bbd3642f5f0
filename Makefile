# Every target sets up what it needs in .venv first, and does nothing for that when it is already there.

HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?= python3
BENCH ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# A real MLflow server for the tests, which brings 90 packages that nothing else of ours is to meet.
MLFLOW := .venv-mlflow
MLFLOW_STAMP := $(MLFLOW)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help serve worker demo test check acceptance bench image clean

help: ## list the targets (this text)
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(STAMP) ## start the service on HOST and PORT (127.0.0.1:8000); its jobs are kept in data/
	HOST=$(HOST) PORT=$(PORT) MIGRATE_CKPT_DATA_FOLDER="$${MIGRATE_CKPT_DATA_FOLDER-data}" exec $(BIN)/python -m app serve

worker: $(STAMP) ## carry out the jobs of MIGRATE_CKPT_DATABASE_URL, which many machines may share
	exec $(BIN)/python -m app worker

demo: $(STAMP) ## migrate a checkpoint over HTTP and show what changed in it
	$(BIN)/python docs/demo.py

test: $(STAMP) ## run every test but those that start real processes
	$(BIN)/python -m pytest -m "not acceptance"

check: $(STAMP) ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

acceptance: $(STAMP) $(MLFLOW_STAMP) ## run the tests that start real processes and speak real HTTP
	$(BIN)/python -m pytest -m acceptance

bench: $(STAMP) ## measure library and service beside others (BENCH="library --sizes 100MB")
	$(BIN)/python benchmarks $(BENCH)

image: ## build the container image migrate-ckpt (needs a Docker engine)
	@docker info >/dev/null 2>&1 || { echo "make image: no Docker engine answers here" >&2; exit 1; }
	docker build --build-arg PIP_EXTRA_INDEX_URL --tag migrate-ckpt .

clean: ## remove .venv and everything built or cached
	rm -rf $(VENV) $(MLFLOW) .cache build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "migrate-ckpt needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Where it cannot be had, the tests that need it say so when they skip.
$(MLFLOW_STAMP): tests/acceptance/mlflow-constraints.txt
	$(PYTHON) -m venv $(MLFLOW)
	$(MLFLOW)/bin/python -m pip install --disable-pip-version-check --quiet --constraint $< mlflow && touch $@ \
		|| echo "make: MLflow could not be installed, and is not tested with" >&2
