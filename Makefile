# The commands that README and CI use. Everything is set up in .venv by the first of them; nothing else has to be typed.

PYTHON ?= python3
BIN := .venv/bin
BENCH_ARGS ?=

.PHONY: run test lint asan valgrind dist pythons bench chaos faults soak tools peers bench-report

# As users install it, unless all that developers need is there already.
run: $(or $(wildcard .venv/ready),.venv/run)
	$(BIN)/python examples/hello.py

# Bytecode first: where Python may not write any (PYTHONDONTWRITEBYTECODE), each server that a test starts would compile
# every module again. The second half runs, too, if the first has failed.
# Those that do not measure themselves with the whole machine, but mostly wait, need not wait for each other.
BESIDE := tests/core tests/unit tests/embed $(wildcard tests/test_*.py) \
    $(patsubst %,tests/system/test_%.py,boot_failure chaos connection_path corners debugging dispatcher exits folders forks health \
    hostile_worker keep_alive kill_matrix leaks logging master master_sweep orphans own_loop pages reload sandbox scale \
    shortages shutdown signals soak start_and_end stdio unkillable unprivileged worker_life)
test: .venv/ready tools
	$(BIN)/python -m compileall -q pyfanout tests
	$(BIN)/python -m pytest tests/bench tests/system $(BESIDE:%=--ignore=%) $(TEST_ARGS); first=$$?; \
	$(BIN)/python -m pytest --numprocesses=6 $(BESIDE) $(TEST_ARGS) && exit $$first

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tests/commits.py

asan: .venv/ready
	$(BIN)/python tests/sanitizers.py asan

# The core's tests, too, but without another build: 4 minutes. A short life of the core under valgrind is in `make test`.
valgrind: .venv/ready tools
	$(BIN)/python tests/sanitizers.py valgrind $(TEST_ARGS)

# The sdist and the wheel: built, installed in clean environments, and served from.
dist: .venv/ready
	$(BIN)/python tests/packages.py

# The tests of the units, of the core and of a worker's life with each newer Python that can be had here: pyenv's, one on
# PATH, or Debian's (as root, in a chroot). What cannot be had is named at the end as not run, and fails nothing.
pythons: .venv/ready
	$(BIN)/python tests/pythons.py $(TEST_ARGS)

bench: .venv/ready
	$(BIN)/python -m bench dispatch $(BENCH_ARGS)

# All that the report compares with; it names a server that cannot be installed here as not run.
peers: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[peers,report]'
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    command -v node npm >/dev/null || apt-get install -y -qq nodejs npm >/dev/null; \
	    command -v nginx >/dev/null || { apt-get update -qq && apt-get install -y -qq nginx-light >/dev/null; }; fi
	npm install --prefix bench/peers --silent --no-audit --no-fund

# A folder below bench/results: every sample, and report.md. REPORT_ARGS=--quick: 5 minutes, not 65. `python -m bench page
# FOLDER` makes overview.svg and report.html of it.
bench-report: .venv/ready
	$(BIN)/python -m bench peers $(REPORT_ARGS)

# Ten minutes of chaos for each kind of worker; a short one is in `make test`.
chaos: .venv/ready
	CHAOS_S=600 $(BIN)/python -m pytest tests/system/test_chaos.py $(TEST_ARGS)

.venv/run: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# An editable install: the C core is built again when a source of it has changed.
.venv/ready: pyproject.toml setup.py $(wildcard csrc/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test,embed-test,bench,dev]'
	touch $@

# Each call of the core, and of the master, fails at each of its occurrences, with each error; what else may run out; a
# worker that does evil; any bytes where a worker's or a client's are read; every interleaving. Some of that is in `make test`.
faults: .venv/ready tools
	FAULTS=all FUZZ_S=60 $(BIN)/python -m pytest $(patsubst %,tests/system/test_%.py,master_sweep hostile_worker shortages \
	    exhaustion reload) $(patsubst %,tests/core/test_%.py,sweep model threads) \
	    $(patsubst %,tests/unit/test_%.py,fuzz every_life) $(TEST_ARGS)

# As many connections as in a day, of each kind: is memory flat? Half an hour.
soak: .venv/ready
	SOAK=10000000 $(BIN)/python -m pytest -s tests/system/test_soak.py $(TEST_ARGS)

# What the tests drive servers with, and the bench is checked against.
tools:
	@missing=; for tool in ab:apache2-utils wrk:wrk spin:spin valgrind:valgrind curl:curl openssl:openssl unshare:util-linux pkill:procps ip:iproute2; do \
	    command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool#*:}"; done; \
	if [ -n "$$missing" ]; then \
	    if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$missing >/dev/null; \
	    else echo "make test needs:$$missing; install them with your package manager" >&2; exit 1; fi; fi
