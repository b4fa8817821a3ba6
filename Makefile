# The commands of this repository. Each of them sets up what it needs.

SHELL := /bin/bash
.PHONY: setup mini test test-all

setup:  # .venv with the package and all that it needs; done within a second where nothing changed
	./setup_environment.sh

mini: setup  # the whole recipe on the mini corpus
	cd egs2/librispeech_100/asr1 && ./run.sh --corpus mini --asr_config conf/branchformer_mla.yaml

test: setup  # the tests
	.venv/bin/python -m pytest -q -m "not slow" tests

test-all: setup  # the tests, and those that take minutes each
	.venv/bin/python -m pytest -q tests
