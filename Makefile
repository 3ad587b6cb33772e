# make echo, make test: each does all that is needed first. `make help` lists the rest.
PYTHON ?= python3
# A virtual environment of its own for each Python named.
VENV   ?= .venv$(patsubst %,-%,$(subst /,_,$(filter-out python3,$(PYTHON))))
BIN     = $(VENV)/bin
CFLAGS_LINT = -std=gnu11 -Wall -Wextra -Werror -fsyntax-only -Ipylibevent/_cffi/src
RESULTS = benchmarks/results
DOCS    = build/docs
MINUTES ?= 5
BUILD_INPUTS = pyproject.toml setup.py build_libevent.py pylibevent/_version.py \
	$(wildcard pylibevent/_cffi/*/*.[ch])
export PYTHON VENV
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help echo test test-asyncio test-abi3 sanitize valgrind soak fuzz bench docs wheel lint generate clean

help:
	@echo 'make echo [ARGS="--port 8899"]         install what is missing, build, run examples/echo_server.py'
	@echo 'make test [PYTEST_ARGS="-k buffer"]    the same set-up, then the tests'
	@echo 'make test-asyncio                       CPython'\''s own tests of asyncio on aio.EventLoop, all of them'
	@echo 'make test-abi3 [PYTEST_ARGS=...]        the tests with one wheel on each CPython that is here'
	@echo 'make sanitize [PYTEST_ARGS=...]         the tests with AddressSanitizer, LeakSanitizer and UBSan'
	@echo 'make valgrind [PYTEST_ARGS=...]         the tests of the core classes under valgrind'
	@echo 'make soak [MINUTES=5] [SEED=1]         1,000 clients of every kind against the echo server and the proxy'
	@echo 'make fuzz [MINUTES=10] [SEED=n]          random steps and bytes, seed after seed: SEED=n repeats what has failed'
	@echo 'make bench [BENCH_ARGS="--quick"]      all benchmarks: table, JSON, plots into $(RESULTS)'
	@echo 'make docs                              the manual, into $(DOCS): open index.html there'
	@echo 'make wheel                             the sdist and one wheel with libevent inside, tested: dist/'
	@echo 'make lint                              ruff, mypy --strict, pyright, the C compiler with its warnings as errors'
	@echo 'make generate                          write what is made by scripts: the raw layer'\''s types, docs/api_coverage.md'
	@echo 'make clean                             remove the virtual environment and all that was built'
	@echo 'PYTHON=python3.13 before or after any  which Python, 3.10 or later (python3)'

echo: $(VENV)/installed
	@exec $(BIN)/python examples/echo_server.py $(ARGS)

test: $(VENV)/installed-test
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

test-asyncio: $(VENV)/installed
	$(BIN)/python scripts/asyncio_suite.py $(ARGS)

test-abi3: $(VENV)/installed
	rm -rf build/abi3
	$(BIN)/python -m pip wheel -q --no-deps -w build/abi3 .
	@scripts/test_wheel.sh build/abi3/*.whl $(PYTEST_ARGS)

sanitize:
	@scripts/sanitize.sh $(PYTEST_ARGS)

valgrind: $(VENV)/installed-test
	@scripts/valgrind.sh $(BIN)/python $(PYTEST_ARGS)

soak: $(VENV)/installed
	$(BIN)/python scripts/soak.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: $(VENV)/installed-test
	@scripts/fuzz.sh $(BIN)/python $(or $(MINUTES),10) $(or $(SEED),$(shell date +%s))

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks --table $(RESULTS)/results.md --json $(RESULTS)/results.json \
		--plots $(RESULTS) $(BENCH_ARGS)

docs: $(VENV)/installed-docs
	$(BIN)/sphinx-build -q -E -W --keep-going -b html docs $(DOCS)

wheel: $(VENV)/installed
	@scripts/wheel.sh $(BIN)/python

lint: $(VENV)/installed-test $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=. PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python \
		--verifytypes pylibevent --ignoreexternal >$(VENV)/types || { cat $(VENV)/types; exit 1; }
	@grep score $(VENV)/types
	$(BIN)/python scripts/make_stub.py --check
	$(BIN)/python scripts/api_coverage.py --check
	@set -e; for file in pylibevent/_cffi/src/*.c benchmarks/c/*.c; do \
		case $$file in */*tls*.c) pkg-config --exists openssl || continue ;; esac; \
		echo "cc $$file"; cc $(CFLAGS_LINT) $$(pkg-config --cflags libevent_core) $$file; done

generate: $(VENV)/installed
	$(BIN)/python scripts/make_stub.py
	$(BIN)/python scripts/api_coverage.py

# An editable install: edits of Python files need no new one, edits of what is compiled do.
$(VENV)/installed: $(BUILD_INPUTS) scripts/setup.sh
	@scripts/setup.sh
	@touch $@

# The package is installed: pip adds only what the extra names.
$(VENV)/installed-%: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install -q 'pylibevent[$*]'
	@touch $@

clean:
	rm -rf $(VENV) .venv .venv-* build dist *.egg-info pylibevent/*.so .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
