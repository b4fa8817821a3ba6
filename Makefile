# The commands of this repository. Each of them sets up what it needs.

SHELL := /bin/bash
.PHONY: setup mini lint test test-all

setup:  # .venv with the package and all that it needs; done within a second where nothing changed
	./setup_environment.sh

mini: setup  # the whole recipe on the mini corpus
	cd egs2/librispeech_100/asr1 && ./run.sh --corpus mini --asr_config conf/branchformer_mla.yaml

lint: setup  # format, ruff's rules, and types
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

# A worker for each core; each begins with its share of the files in a row, so that few fixtures are built twice.
PYTEST := .venv/bin/python -m pytest -q -n auto --dist worksteal

test: setup  # the tests, 5 minutes on 2 cores
	$(PYTEST) -m "not slow" tests

test-all: setup  # the tests, and the slow ones: whole products of cases, and those that take minutes each
	$(PYTEST) tests
