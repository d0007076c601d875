# make demo    set up and run the headline study on embedded data
# make test    set up and run the tests
# make check   format, lint, types, floors
# make bench   speed, as ratios to the peer in the same run
# make results measure every study at its default scale and record it in results/
# make readme  put the recorded claims into README.md and docs/claims.md
VENV ?= .venv
PYTHON ?= python3
PIP = $(VENV)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.PHONY: demo test check bench results readme format
.DEFAULT_GOAL := demo

$(VENV)/.base: pyproject.toml constraints.txt
	@echo "Setting up $(VENV): a few minutes on the first run."
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	@$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.base
	@$(VENV)/bin/neuropil run disinhibition --scale smoke

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n auto

check: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/basedpyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/lint-imports

bench: $(VENV)/.base
	@for file in benchmarks/bench_*.py; do $(VENV)/bin/python $$file || exit 1; done

results: $(VENV)/.base
	$(VENV)/bin/neuropil run --all --scale default --jobs 2 --record results

readme: $(VENV)/.base
	$(VENV)/bin/python -m neuropil.atlas.markdown README.md docs/claims.md results/*.json

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
