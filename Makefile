# On a fresh Debian machine `make demo` and `make test` each do everything; the second time both start at once.
#
#   make demo ARGS="--vms 8 --churn 5"      arguments for `statsfs demo ./stats`
#   make test ARGS="-k mounting -x"         arguments for pytest

PYTHON ?= python3
ARGS ?=

bin := .venv/bin
stamp := .venv/.installed
# Covered to the last branch is all that decides what a reader sees; not what talks to FUSE and people.
adapters := fuse loop mounting mountpoints watcher __main__ cli/*
empty :=
comma := ,
omit := $(subst $(empty) $(empty),$(comma),$(adapters:%=statsfs/%.py))

.DEFAULT_GOAL := help
.PHONY: help demo test check lint bench setup system clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# Ctrl-C reaches every process of the terminal's foreground group, and make, hit too, would end with status 130.
# So there the demo runs in a group of its own (bash -m), and ends with its shell if that is killed.
demo: setup ## mount the mock KVM at ./stats until Ctrl-C
	@set -- $$(cat /proc/$$$$/stat); \
	if [ "$$5" = "$$8" ]; then set -- bash -mc 'setpriv --pdeathsig TERM "$$@"; exit' bash; else set --; fi; \
	exec "$$@" $(bin)/statsfs demo ./stats $(ARGS)

test: setup ## run the tests, measuring coverage
	@$(bin)/coverage erase
	$(bin)/coverage run -m pytest $(ARGS)
	@$(bin)/coverage combine --quiet
	@$(bin)/coverage report

check: lint ## all that CI asks for: format, lint, types, tests, full coverage of the core
	@$(MAKE) --no-print-directory test
	$(bin)/coverage report --omit='$(omit)' --fail-under=100

lint: setup ## format, lint and types only
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy

bench: setup ## run the benchmarks
	$(bin)/python -m tests.bench $(ARGS)

setup: $(stamp) ## install what is missing: Debian packages, .venv

$(stamp): pyproject.toml | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "statsfs needs Python 3.11 or newer: make PYTHON=python3.x ..." >&2; exit 1; }
	@echo "installing into .venv (once) ..."
	@[ -x $(bin)/pip ] || $(PYTHON) -m venv --clear .venv
	@$(bin)/pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

# What the machine lacks, as Debian packages: nothing is asked of apt when nothing is missing.
system:
	@missing=; \
	command -v fusermount3 >/dev/null || missing="$$missing fuse3"; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	pkg-config --exists fuse3 2>/dev/null || missing="$$missing libfuse3-dev"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v getfattr >/dev/null || missing="$$missing attr"; \
	command -v $(PYTHON) >/dev/null || missing="$$missing python3"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || \
		missing="$$missing python3-dev"; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { echo "please install what Debian calls:$$missing" >&2; exit 1; }; \
	sudo=; \
	if [ "$$(id -u)" != 0 ]; then \
		sudo=sudo; \
		command -v sudo >/dev/null || { echo "as root, please: apt-get install$$missing" >&2; exit 1; }; \
	fi; \
	echo "installing Debian packages:$$missing"; \
	$$sudo apt-get -qq update && \
	$$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $$missing >/dev/null

clean: ## remove what make and the tools made
	rm -rf .venv dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
