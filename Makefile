# On a fresh Debian machine `make demo` and `make test` each do everything; the second time both start at once.
#
#   make demo ARGS="--vms 8 --churn 5"      arguments for `statsfs demo ./stats`
#   make test ARGS="-k mounting -x"         arguments for pytest; the same for `make quick`
#   make soak ARGS="--seconds 10 load"      how long each scenario lasts, and which
#   make boot ARGS=watchdog                 the checks with this word in their names

PYTHON ?= python3
ARGS ?=

bin := .venv/bin
stamp := .venv/.installed
tools := .venv/debian/usr/bin
# After an upgrade of the system, the packages in .venv may be those of a Python that is gone.
works := $(if $(wildcard $(stamp)),$(shell $(bin)/python -Ic 'import statsfs' 2>/dev/null && echo yes))
# Covered to the last branch is all that decides what a reader sees; not what talks to FUSE, KVM and people.
adapters := filesystem/fuse_handlers filesystem/invalidator filesystem/request_loop filesystem/session filesystem/trio_session filesystem/mounting \
	filesystem/mountpoints filesystem/watcher filesystem/beneath filesystem/takeover demo/real_kvm __main__ cli/*
empty :=
comma := ,
omit := $(subst $(empty) $(empty),$(comma),$(adapters:%=statsfs/%.py))

.DEFAULT_GOAL := help
.PHONY: help demo test quick check docs lint pyright uwsgi bench soak fleet setup anew system tools qemu boot chromium browser matrix dist release deb debtest clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

# Ctrl-C reaches every process of the terminal's foreground group, and make, hit too, would end with status 130.
# So there the demo runs in a group of its own (bash -m), and ends with its shell if that is killed.
demo: setup ## mount the mock KVM at ./stats until Ctrl-C
	@set -- $$(cat /proc/$$$$/stat); \
	if [ "$$5" = "$$8" ]; then set -- bash -mc 'setpriv --pdeathsig TERM "$$@"; exit' bash; else set --; fi; \
	exec "$$@" $(bin)/statsfs demo ./stats $(ARGS)

# Tests that measure how long a service waits come last, when no others take the processors. If ARGS leaves no
# test of one kind, pytest says 5.
# One process more than there are processors: a third of their time they wait.
# All is compiled first: with PYTHONDONTWRITEBYTECODE, which containers set, each of 1,400 programs would do it again.
test: setup qemu uwsgi ## run the tests, measuring coverage
	@$(MAKE) --no-print-directory chromium
	@$(bin)/python -m compileall -q statsfs tests examples
	@$(bin)/coverage erase
	$(bin)/coverage run -m pytest --alone=not -n $$(($$(nproc) + 1)) --dist loadfile $(ARGS); status=$$?; \
	[ $$status = 0 ] || [ $$status = 5 ] || exit $$status; \
	$(bin)/coverage run -m pytest --alone=only $(ARGS) || { alone=$$?; [ $$alone = 5 ] && exit $$status; exit $$alone; }
	@$(bin)/coverage combine --quiet
	@$(bin)/coverage report

# Once there is a .venv, nothing of the machine is looked at: a container without FUSE will do.
quick: $(if $(works),,setup) ## the tests of half a minute: no coverage, no FUSE, KVM, root, tools
	$(bin)/python -m pytest -n auto --dist loadfile \
		-m 'not mount and not kvm and not root and not tools and not browser and not slow' $(ARGS)

check: lint docs ## all that CI asks for: format, lint, types, the manual, tests, full coverage of the core
	@$(MAKE) --no-print-directory test
	$(bin)/coverage report --omit='$(omit)' --fail-under=100

lint: setup pyright ## format, lint and types only
	$(bin)/ruff format --check
	$(bin)/ruff check
	$(bin)/mypy
	[ ! -x $(bin)/pyright ] || $(bin)/pyright

# In a few seconds, and with no network. All pages each time: a page that was read before would not warn again.
docs: setup ## build the manual in dist/docs; a warning is an error
	$(bin)/sphinx-build -q -E -W -n --keep-going -d .cache/docs docs dist/docs

# A second type checker, for the examples; with its node it is as large as all else in .venv.
pyright: setup
	@[ -x $(bin)/pyright ] || $(bin)/pip install -qq --disable-pip-version-check --editable '.[pyright]' || \
		echo "there is no pyright: mypy alone checks the examples" >&2

# A recipe of the manual runs it. It is compiled.
uwsgi: setup
	@[ -x $(bin)/uwsgi ] || $(bin)/pip install -qq --disable-pip-version-check --editable '.[uwsgi]' || \
		echo "there is no uWSGI: the test of its recipe is skipped" >&2

bench: setup ## run the benchmarks
	$(bin)/python -m tests.bench $(ARGS)

soak: setup ## a minute of load for each kind of fault; `make test` has a moment of each
	$(bin)/python -m tests.soak $(ARGS)

fleet: tools ## what a host costs, and 500 with Prometheus and VictoriaMetrics: 15 minutes
	$(bin)/python -m tests.fleet $(ARGS)

setup: $(stamp) ## install what is missing: Debian packages, .venv

$(stamp): pyproject.toml $(if $(works),,anew) | system
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "statsfs needs Python 3.11 or newer: make PYTHON=python3.x ..." >&2; exit 1; }
	@echo "installing into .venv (once) ..."
	@$(bin)/python -Ic 'import pip' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@$(bin)/pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@

# Installs $missing, a shell's list of Debian packages.
define install_missing
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
endef

# What the machine lacks, as Debian packages: nothing is asked of apt when nothing is missing.
system:
	@missing=; \
	command -v fusermount3 >/dev/null || missing="$$missing fuse3"; \
	command -v pkg-config >/dev/null || missing="$$missing pkg-config"; \
	pkg-config --exists fuse3 2>/dev/null || missing="$$missing libfuse3-dev"; \
	command -v gcc >/dev/null || missing="$$missing gcc libc6-dev"; \
	command -v getfattr >/dev/null || missing="$$missing attr"; \
	command -v $(PYTHON) >/dev/null || missing="$$missing $(notdir $(PYTHON))"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing $(notdir $(PYTHON))-venv"; \
	$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || \
		missing="$$missing $(notdir $(PYTHON))-dev"; \
	$(install_missing)

# What only tests need: the real Prometheus and VictoriaMetrics. The packages are unpacked and not installed, which
# would start daemons, and bring the fonts and scripts of their web pages. Debian 13 has promtool apart. Not each
# release has VictoriaMetrics.
tools: setup
	@missing=; \
	for tool in prometheus promtool prometheus-node-exporter victoria-metrics; do \
		command -v $$tool >/dev/null || [ -x $(tools)/$$tool ] || missing="$$missing $$tool"; \
	done; \
	[ "$$missing" != " victoria-metrics" ] || [ "$$(apt-cache --names-only search '^victoria-metrics$$' 2>/dev/null)" ] || missing=; \
	[ -n "$$missing" ] || exit 0; \
	command -v apt-get >/dev/null || { echo "please install, for the tests:$$missing" >&2; exit 1; }; \
	echo "unpacking Debian packages into .venv, for the tests:$$missing"; \
	rm -rf .venv/debian && mkdir -p $(tools) && cd .venv/debian || exit; \
	fetch() { \
		others=$$(apt-cache --names-only search '^(promtool|victoria-metrics)$$' | cut -d' ' -f1); \
		apt-get -qq -o APT::Sandbox::User= download prometheus prometheus-node-exporter $$others; \
	}; \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	fetch 2>/dev/null || { $$sudo apt-get -qq update && fetch; } || exit; \
	for package in *.deb; do dpkg-deb --fsys-tarfile $$package | tar -x ./usr/bin || exit; done; \
	rm -f *.deb

# Where there is KVM, the tests run real virtual machines; the C header is for C++, too, lines of JSON for jq, and pages of the
# manual ask with curl. After `tools`: apt does one thing at a time.
# libvirt-daemon starts nothing; it has no unit.
qemu: tools
	@missing=; \
	[ ! -e /dev/kvm ] || command -v qemu-system-x86_64 >/dev/null || missing=" qemu-system-x86 seabios"; \
	[ ! -e /dev/kvm ] || [ -x /usr/sbin/libvirtd ] || \
		missing="$$missing libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients"; \
	[ ! -e /dev/kvm ] || $(bin)/python -c 'import libvirt' 2>/dev/null || \
		missing="$$missing libvirt-dev pkg-config gcc"; \
	command -v g++ >/dev/null || missing="$$missing g++"; \
	command -v jq >/dev/null || missing="$$missing jq"; \
	command -v curl >/dev/null || missing="$$missing curl"; \
	( $(install_missing) ) || [ "$$(id -u)" != 0 ] || exit 1
	@[ ! -e /dev/kvm ] || tests/support/unpack_qemu.sh .venv/qemu-trixie || \
		echo "there is no QEMU of Debian 13: tests of it are skipped" >&2
	@[ ! -e /dev/kvm ] || $(bin)/python -c 'import libvirt' 2>/dev/null || \
		$(bin)/pip install -qq --disable-pip-version-check --editable '.[libvirt]' || \
		echo "there is no libvirt-python: tests of it are skipped" >&2

boot: setup ## systemd boots statsfs in a virtual machine: five minutes, and a download
	$(bin)/python -m tests.boot $(ARGS)

# A real browser, for the page. It brings some 100 packages, and takes half a minute. As with `qemu`, an installation that
# fails is an error for root; on a system without these packages, tests of the page are skipped.
chromium: setup
	@missing=; \
	command -v chromium >/dev/null && command -v chromedriver >/dev/null || missing=" chromium chromium-driver"; \
	( $(install_missing) ) && exit; \
	[ "$$(id -u)" != 0 ] || ! apt-cache show chromium-driver >/dev/null 2>&1 || exit 1; \
	echo "there is no chromium: tests of the page are skipped" >&2

browser: chromium ## run the tests of the page in a real browser; pictures are in .cache/page
	$(bin)/python -m pytest -m browser $(ARGS)

matrix: ## `make check` on Debian 13 and unstable, with each Python that they have: an hour
	tests/matrix.sh $(ARGS)

dist: setup ## build a wheel and an sdist in dist/, and install each in a fresh venv
	@rm -f dist/*.whl dist/*.tar.gz
	@$(bin)/python -m build --no-isolation --outdir dist >/dev/null
	@for file in dist/*.whl dist/*.tar.gz; do tests/support/install_dist.sh "$$file" || exit; done

release: ## check that this commit can be released: version, changelog, packages, manual; publishes nothing
	@packaging/check_release.sh before
	@$(MAKE) --no-print-directory dist
	@$(MAKE) --no-print-directory docs
	@packaging/check_release.sh after

# What Build-Depends says, and build-essential, which it implies.
deb: ## build a Debian package in dist/, for this release of Debian
	@missing=; \
	for package in build-essential debhelper libfuse3-dev pkgconf python3-dev python3-venv; do \
		[ "$$(dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null)" = installed ] || \
			missing="$$missing $$package"; \
	done; \
	( $(install_missing) ) || exit 1; \
	packaging/build_deb.sh

debtest: ## `make deb` in a Debian 12 and a 13; each package is installed in a fresh root, tried, and purged
	tests/deb.sh $(ARGS)

clean: ## remove what make and the tools made
	rm -rf .venv .cache dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
