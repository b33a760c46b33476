# make lab    set up, run every notebook into results/; with a terminal, open JupyterLab meanwhile
# make test   set up, run the tests (four minutes); make test-all: the slow ones, too, and those in a browser
# make docs   the API reference as pages in results/docs
# make strict bounds checks with five times the random cases, no JIT, mutants: half an hour
# make bench  speed as ratios, compared with those kept (BENCH=--quick: two minutes)
# make panels  slider to picture in every notebook, in a browser; make minutes: a new user's first ones
# make fuzz   every reader against libFuzzer (hours); findings in tests/fuzz/corpus
# make coverage  lines and branches that tests reach, kernels as plain Python: results/coverage.md
# make mutants   a random sample of small edits, which tests must notice: results/mutants.md (hours)
# make peers  what benchmarks and some tests compare with (compiles: needs a C compiler and Python's headers)
# make soak   a billion accesses and 10^8 operations: memory stays flat (ten minutes)
# Needs python3 (>= 3.11), pip and make; no root, no python3-venv.
SHELL       := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] < (3,15))' 2>/dev/null && { command -v $$p; break; }; done)
VENV   := .venv
BIN    := $(VENV)/bin
LOCKED := $(VENV)/.locked
STAMP  := $(VENV)/.ready
QUALITY := $(VENV)/.quality
PEERS  := $(VENV)/.peers
TESTS  ?= tests
# with TESTS= of one's own: all that they hold
MARKS  ?= $(if $(filter tests,$(TESTS)),not slow and not browser and not notebook)
JOBS   ?= $(shell n=$$(nproc 2>/dev/null || echo 1); echo $$((n < 4 ? n : 4)))
export PYTHONUTF8 := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH PYTHONHOME MPLBACKEND

.PHONY: setup lab notebooks test test-all docs strict coverage mutants soak peers fuzz bench panels minutes lint clean
.DELETE_ON_ERROR:

setup: $(STAMP)

# `venv --without-pip` works where Debian's python3-venv (ensurepip) is absent; where the module itself
# is missing, a pyvenv.cfg beside a link to the interpreter is all that it would have made.
$(LOCKED): requirements.lock
	@test -n "$(PYTHON)" || { echo "pvmmu needs Python 3.11 to 3.14; none is on PATH (set PYTHON=/path/to/python3)"; exit 1; }
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "pvmmu needs pip for $(PYTHON) (Debian: apt-get install python3-pip)"; exit 1; }
	@echo "[1/3] private environment in $(VENV) ($(PYTHON))"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv --without-pip $(VENV) 2>/dev/null || { \
		mkdir -p $(BIN) $(VENV)/lib/$$($(PYTHON) -c 'import sys; print("python%d.%d" % sys.version_info[:2])')/site-packages && \
		real=$$($(PYTHON) -c 'import os, sys; print(os.path.realpath(sys.executable))') && \
		ln -s $$real $(BIN)/python && \
		printf 'home = %s\ninclude-system-site-packages = false\n' $$(dirname $$real) > $(VENV)/pyvenv.cfg; }
	@echo "[2/3] installing $$(grep -c '==' requirements.lock) locked packages (one to three minutes, once)"
	@$(PYTHON) -m pip --python $(BIN)/python install --require-hashes --only-binary :all: -r requirements.lock \
		| awk '/^Collecting|^Installing collected|^ERROR/ { printf "  %s\n", substr($$0, 1, 70); fflush() }'
	@touch $@

$(STAMP): $(LOCKED) pyproject.toml Makefile
	@echo "[3/3] pvmmu itself"
	@$(PYTHON) -m pip --python $(BIN)/python install -q --no-index --no-deps --no-build-isolation -e .
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (pvmmu)" >/dev/null
	@touch $@

notebooks: $(STAMP)
	@$(BIN)/python -m pvmmu.cli.run_notebooks notebooks --out results --jobs $(JOBS)

# Nobody waits for ten notebooks before the first one: they run beside JupyterLab, and end with it.
lab: $(STAMP)
	@if [ -n "$$CI" ] || [ ! -t 0 ] || [ ! -t 1 ]; then \
		$(BIN)/python -m pvmmu.cli.run_notebooks notebooks --out results --jobs $(JOBS) || exit; \
		echo "no terminal: JupyterLab is not opened (start it with $(BIN)/jupyter lab notebooks)"; \
	else \
		mkdir -p results; \
		echo "JupyterLab opens; every notebook is run into results/ meanwhile (results/notebooks.log)"; \
		nice -n 19 $(BIN)/python -m pvmmu.cli.run_notebooks notebooks --out results >results/notebooks.log 2>&1 & \
		trap "kill $$! 2>/dev/null" EXIT; \
		$(BIN)/jupyter lab --ip=127.0.0.1 $$([ "$$(id -u)" = 0 ] && echo --allow-root) notebooks/00-start-here.ipynb; \
	fi

test: $(STAMP)
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "$(MARKS)" $(TESTS)

# what `make lab` has run is only looked at
test-all: MARKS :=
test-all: test

docs: $(STAMP)
	@$(BIN)/pdoc --docformat numpy --no-include-undocumented --output-directory results/docs pvmmu \
		2> >(grep -v "Error parsing type annotation" >&2)
	@echo "the API reference is in $(CURDIR)/results/docs/pvmmu.html"

# bounds checks, more random cases, plain Python, broken on purpose: ten minutes
strict: $(STAMP)
	@$(BIN)/python tests/quality/strict.py --jobs $(JOBS)

$(QUALITY): $(STAMP) tests/quality/requirements.lock
	@$(PYTHON) -m pip --python $(BIN)/python install -q --require-hashes --no-deps -r tests/quality/requirements.lock
	@touch $@

coverage: $(QUALITY)
	@$(BIN)/python tests/quality/measure.py --jobs $(JOBS)

mutants: $(QUALITY)
	@$(BIN)/python -W ignore tests/quality/mutants.py --jobs $(JOBS)

peers: $(PEERS)

$(PEERS): $(STAMP) benchmarks/peers.lock
	@command -v cc >/dev/null || { echo "pycachesim is compiled: no C compiler (Debian: apt-get install gcc python3-dev)"; exit 1; }
	@$(PYTHON) -m pip --python $(BIN)/python install -q --require-hashes --no-deps -r benchmarks/peers.lock
	@touch $@

# libFuzzer over every reader: 10^5 inputs each, hours.
fuzz: $(STAMP)
	@$(PYTHON) -m pip --python $(BIN)/python install -q --require-hashes --no-deps -r tests/fuzz/requirements.lock
	@$(BIN)/python tests/fuzz/run.py

soak: $(STAMP)
	@$(BIN)/python benchmarks/soak.py

bench: $(PEERS)
	@$(BIN)/python benchmarks/run.py $(BENCH)

# idle machine, please: the first takes ten minutes, the second installs everything anew
panels: $(STAMP)
	@$(BIN)/python benchmarks/panels.py $(PANELS)

minutes:
	@$(PYTHON) benchmarks/first_minutes.py

lint: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify notebooks/*.ipynb

clean:
	rm -rf $(VENV) results
