# Every command first installs or starts what it needs (.venv, a broker, a database), also on a fresh machine.
# Needs Python 3.11 or later (PYTHON=/path/to/python3 names one) and, for a broker, one of: a running RabbitMQ, Docker,
# or Debian's rabbitmq-server, which is installed where permissions allow.

#: More arguments for pytest: make test PYTEST="tests/unit -k saga"
PYTEST ?=
#: More arguments for the benchmarks: make bench BENCH="--measure worker --systems ours --quick"
BENCH ?=
#: Siblings of the sandbox that are not started, to run others in their place: make run WITHOUT="menu payment"
WITHOUT ?=
#: Whether requests need an access token: make run AUTH=jwt
AUTH ?= none
#: Where `make sbom` writes.
SBOM ?= var/sbom.cdx.json
export PYTHON
# The tests start hundreds of processes, each of which would compile every module again (0.25 s).
unexport PYTHONDONTWRITEBYTECODE

python := .venv/bin/python
javascript := tests/contract-js
clients := tests/clients
# Three on two cores too: many tests wait for processes to start.
tests := $(python) -m pytest --numprocesses 3 --dist loadgroup $(PYTEST)

# A venv that was moved, or whose Python was removed, is rebuilt even if its stamps are current.
venv_works := $(shell exec 2>/dev/null; grep -qF '$(CURDIR)/.venv/bin/python' .venv/bin/pip && $(python) -c '' && echo yes)
ifneq ($(venv_works),yes)
.PHONY: .venv/run.stamp .venv/dev.stamp
endif

.PHONY: help demo run test test-containers test-generated test-contract test-browser screenshots test-field bench lint types layering audit sbom pin-images lock clean
.NOTPARALLEL:

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' Makefile

demo: .venv/run.stamp ## take one order from POST to paid with real processes and a real broker, then stop everything
	@$(python) -m sandbox.demo

run: .venv/run.stamp ## run everything, with one log per process, until Ctrl-C
	@$(python) -m sandbox.run --without "$(WITHOUT)" --auth "$(AUTH)"

test: .venv/dev.stamp ## run all tests, on SQLite and PostgreSQL, with a real broker
	$(tests)

test-containers: .venv/dev.stamp ## run the same tests with RabbitMQ and PostgreSQL from Docker (testcontainers)
	ORDER_TEST_CONTAINERS=1 $(tests)

test-generated: .venv/dev.stamp ## run the generated tests in full: 10,000 messages and 2,000 requests, on each database
	ORDER_TEST_MESSAGES=10000 ORDER_TEST_CASES=2000 $(tests) -m 'not contract' \
		tests/integration/test_generated_messages.py tests/integration/test_schemathesis.py

test-contract: .venv/dev.stamp $(javascript)/node_modules/.stamp $(clients)/node_modules/.stamp var/clients-venv/run.stamp ## run the tests that need Node.js or a venv of their own: AsyncAPI's parser, services with other libraries, OpenAPI's linters, generated clients and models
	$(python) -m pytest -m contract $(PYTEST)

test-browser: .venv/dev.stamp ## run the tests in a browser (Debian's chromium) behind nginx; both are installed where apt is available
	@$(python) -m tests.e2e.browser
	$(python) -m pytest -m browser $(PYTEST)

screenshots: .venv/dev.stamp ## take the screenshots of the board in docs/images
	@$(python) -m tests.e2e.browser
	$(python) -m tests.e2e.screenshots

test-field: .venv/dev.stamp ## run the tests that take minutes or need special packages, such as pgbouncer
	$(python) -m pytest -m field $(PYTEST)

bench: var/bench-venv/run.stamp ## measure the speed, compared with other systems and with the limits of this machine; results in var/benchmarks
	var/bench-venv/bin/python -m benchmarks $(BENCH)

lint: .venv/dev.stamp ## check style and format (ruff)
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: .venv/dev.stamp ## check types (mypy --strict)
	$(python) -m mypy

layering: .venv/dev.stamp ## check the import directions (import-linter, and a test for api.py)
	.venv/bin/lint-imports
	$(python) -m pytest --quiet tests/unit/test_layering.py

audit: var/audit-venv/run.stamp ## look for known vulnerabilities in requirements.txt (pip-audit); skipped, with a message, where PyPI is unreachable
	var/audit-venv/bin/python scripts/audit.py requirements.txt

sbom: var/audit-venv/run.stamp ## write the bill of materials of requirements.txt (CycloneDX) to var/sbom.cdx.json, or SBOM=file
	var/audit-venv/bin/cyclonedx-py requirements requirements.txt --pyproject pyproject.toml --output-reproducible --output-file $(SBOM)

pin-images: ## pin the images of Dockerfile and docker-compose.yml to the digests that Docker Hub has today
	$(or $(PYTHON),python3) scripts/pin_images.py

lock: ## update requirements*.txt from requirements*.in: newest versions, pinned with hashes, for Python 3.11 to 3.13
	$(or $(PYTHON),python3) -m venv var/lock
	var/lock/bin/pip install --quiet uv
	$(lock) requirements.in --output-file requirements.txt
	$(lock) requirements-otel.in --output-file requirements-otel.txt
	$(lock) requirements-dev.in --output-file requirements-dev.txt
	$(lock) requirements-audit.in --output-file requirements-audit.txt
	$(lock) benchmarks/requirements.in --output-file benchmarks/requirements.txt
	$(lock) $(clients)/requirements.in --output-file $(clients)/requirements.txt

clean: ## remove .venv, var (including the data of make run) and caches
	rm -rf .venv var .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

%/node_modules/.stamp: %/package-lock.json
	@command -v npm >/dev/null || { echo 'make test-contract needs Node.js 20 or later with npm: https://nodejs.org' >&2; exit 1; }
	npm ci --prefix $* --ignore-scripts --no-audit --no-fund
	@touch $@

lock := var/lock/bin/uv pip compile --upgrade --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--custom-compile-command 'make lock'

.venv/run.stamp: requirements.txt
	@deploy/make-venv requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt
	@deploy/make-venv requirements-dev.txt
	@touch $@ .venv/run.stamp

var/bench-venv/run.stamp: benchmarks/requirements.txt
	@deploy/make-venv benchmarks/requirements.txt var/bench-venv
	@touch $@

var/audit-venv/run.stamp: requirements-audit.txt
	@deploy/make-venv requirements-audit.txt var/audit-venv
	@touch $@

var/clients-venv/run.stamp: $(clients)/requirements.txt
	@deploy/make-venv $(clients)/requirements.txt var/clients-venv
	@touch $@
