# mvm: `make quickstart` shows it working, `make test` proves it. Nothing is needed but Python >= 3.11 with pip.

PYTHON ?= python3
ARGS ?=
RUNTIME ?=
export MVM_PROGRAMS_DIR ?= $(CURDIR)/.mvm/programs
export MVM_IMAGE_CACHE ?= $(CURDIR)/.mvm/image-cache

.PHONY: help setup setup-vm quickstart test test-full test-vm lint format bench reference lock render-nix clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -e 's/:.*## /\t/' | expand -t 14

setup:  ## install all that is needed into .venv and .mvm
	@$(PYTHON) scripts/setup.py

setup-vm:  ## the same, and as root the Debian packages that virtual machines need
	@$(PYTHON) scripts/setup.py --vm

quickstart: $(if $(filter qemu,$(RUNTIME)),setup-vm,setup)  ## a message wakes a sleeping OpenClaw, with stand-ins for Telegram and the model (ARGS=--once, RUNTIME=qemu)
	@.venv/bin/mvm demo $(if $(RUNTIME),--runtime $(RUNTIME)) $(ARGS)

test: $(if $(CI),setup-vm,setup)  ## every check and test but the full failure matrix
	@.venv/bin/python scripts/test.py $(ARGS)

test-full: $(if $(CI),setup-vm,setup)  ## every check and test
	@.venv/bin/python scripts/test.py --full $(ARGS)

test-vm: setup-vm  ## every test that needs virtual machines, the long ones too (90 minutes at most where they are emulated)
	@.venv/bin/python scripts/test.py --vm $(ARGS)

lint: setup  ## ruff, mypy, import contracts
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup  ## put the code into shape
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

bench: setup  ## print the numbers of docs/measurements.md
	@for script in bench/*.py; do echo "== $$script"; .venv/bin/python "$$script" $(ARGS) || exit 1; done

reference: setup  ## make the schemas of manifests and the references anew after a change of models or commands
	@.venv/bin/python scripts/reference.py

lock: setup  ## make the lock files anew (ARGS=--upgrade lets newer versions in)
	@.venv/bin/python scripts/lock.py $(ARGS)

render-nix: setup  ## make nix/generated anew after a change of the guest's services, drives or settings
	@.venv/bin/python scripts/render_nix.py

clean:  ## remove what setup, tests and builds made in this checkout
	rm -rf .venv .mvm .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find src tests bench scripts -name __pycache__ -type d -prune -exec rm -rf {} +
