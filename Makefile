# Two commands need nothing but Python (3.11 or newer), git and make:
#   make train   trains on the digits that come with scikit-learn, privately
#   make test    the fast tests
# The set-up of .venv is done on the first call only.

# The newest Python that can make a virtual environment; PYTHON=... overrides.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 \
    python3 python; do \
  if $$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1; then echo $$p; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := data,studies,ray,dev
CODE := $(wildcard jaxdp tests scripts configs benchmarks)

CONFIG ?= configs/digits.py
WORKDIR ?= runs/digits
ARGS ?=

.PHONY: train test slow lint format types bench clean

train: $(STAMP)
	$(BIN)/python scripts/train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

# ARGS="--cov --cov-report=term" counts lines; JAX then traces half as fast.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

# Compiled with optimisation, which the fast tests leave out: what is slow, and
# once more what looks at rounding.
slow: $(STAMP)
	JAXDP_TEST_OPTIMISED=1 $(BIN)/python -m pytest -n 2 --dist worksteal \
	  -m "slow or rounding" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: $(STAMP)
	$(BIN)/mypy $(CODE)

bench: $(STAMP)
	for script in benchmarks/[a-z]*.py; do \
	  $(BIN)/python $$script $(ARGS) || exit 1; done

$(STAMP): pyproject.toml
	@test -n "$(strip $(PYTHON))" || { echo "jaxdp needs Python 3.11 or newer" \
	  "with the venv module; none was found on the PATH. Install one" \
	  "(on Debian: python3 python3-venv) or say make PYTHON=/path/to/python" \
	  >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis \
	  .coverage build dist *.egg-info
