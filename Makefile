# Everything from a fresh clone, with Python 3.11 or later and make:
#   make demo    install what the demo needs, run it, write demo-report/
#   make test    install what development needs, then lint, types, import contracts and tests
# Both may be run again at any time, and share .venv.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
OUT ?= demo-report
PYTEST_ARGS ?=
# Tests run in as many processes as there are cores: each takes one.
WORKERS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: demo setup test lint types imports pytest test-slow format clean help
.DELETE_ON_ERROR:

help:
	@echo "make demo   train a pocket FasterViT on handwritten digits, write $(OUT)/report.html"
	@echo "make test   lint, types, import contracts, tests"
	@echo "make setup  install everything that tests and development need into $(VENV)"

demo: $(VENV)/.installed-demo
	@echo "== demo: training, evaluating and reporting into $(OUT)/"
	@$(BIN)/fastervit demo --out "$(OUT)"

setup: $(VENV)/.installed-dev
	@echo "setup: everything for tests and development is in $(VENV)"

test: setup lint types imports pytest
	@echo "test: lint, types, import contracts and tests passed, in $(VENV)"

lint: setup
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@echo "== mypy"
	@$(BIN)/mypy

imports: setup
	@echo "== import contracts"
	@$(BIN)/lint-imports

# Work is stolen, not sent out a file at a time: pytest-xdist 3.8 hangs after a process was lost under --dist loadfile,
# loadscope and loadgroup (its issues 1323, 1378), and does not see groups with pytest 9.2 (1386).
pytest: setup
	@echo "== pytest on $(WORKERS) processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_ARGS)

# timm's own test-suite against the whole family at full size: long, and much memory.
test-slow: setup
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

format: setup
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist demo-report .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# --- Installing: each step leaves a mark, so that it is done once and again only when its inputs change.

$(VENV)/bin/python:
	@echo "== creating $(VENV)"
	@found=; for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "No Python 3.11 or later found; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; fi; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); echo "Python cannot create a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed-demo: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "== installing openfastervit and what the demo needs (PyTorch is large: the first time takes minutes)"
	@$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-demo
	@echo "== installing what tests and development need"
	@$(PIP) install -c constraints.txt -e ".[dev]"
	@rm -rf $(VENV)/timm-sdist && mkdir -p $(VENV)/timm-sdist
	@echo "== fetching timm's own tests, which run against our networks"
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("timm"))') && \
	  $(PIP) download --no-deps --no-binary timm -d $(VENV)/timm-sdist "timm==$$version" && \
	  $(BIN)/python -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' \
	    $(VENV)/timm-sdist/timm-$$version.tar.gz $(VENV)/timm-sdist && rm $(VENV)/timm-sdist/timm-$$version.tar.gz
	@touch $@
