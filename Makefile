# Every target sets up what it needs on a fresh Debian/Ubuntu machine with Python 3.11.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
# Where pip finds a CPU build of torch, for machines whose pip would otherwise bring gigabytes of CUDA:
#   make venv TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"
TORCH_FLAGS ?=
TESTS ?= tests
# Where the tests that need a Slurm stand; collecting the others on every worker would take longer than they do.
SLURM_TESTS = $(if $(filter tests,$(TESTS)),tests/slurm,$(TESTS))
# The files with tests that start processes: loading the others only to leave them out costs each worker 20 s.
PROCESS_TESTS = $(shell grep -rlE 'mark\.(multiprocess|demo)\b' $(TESTS) --include='test_*.py' | sort)
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: venv demo test test-fast test-slurm test-processes lint campaign gpu-bundle lock system clean

venv: $(VENV)/.ready

# torch first and pinned: whatever is installed after it finds it satisfied.
$(VENV)/.ready: pyproject.toml requirements/cpu.lock
	$(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_FLAGS) torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint requirements/cpu.lock --editable ".[dev,slurm,eval]"
	touch $@

demo: venv
	$(BIN)/megavlm demo

# System packages are installed only as root; otherwise the line to run is printed and those tests are named as left out.
system:
	@.ci/system-packages

# First those on a throw-away Slurm, eight at a time: some of them measure the machine. Then the fast ones, two at a time,
# and last those that start processes of their own, one after another. What fails stops nothing else. Never two of the
# three at once: on two cores what waits for another process then waits beyond its limit.
test: venv system
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --keep-going --no-print-directory test-slurm test-fast test-processes

test-fast:
	$(BIN)/pytest $(TESTS) -m "not multiprocess and not demo and not slurm" -n 2 --dist loadfile -q

# A status of 5 says that a folder has no such tests.
test-slurm:
	$(BIN)/pytest $(SLURM_TESTS) -m "slurm and not multiprocess" -n 8 --maxschedchunk 1 -q || [ $$? -eq 5 ]

test-processes:
	$(BIN)/pytest $(or $(PROCESS_TESTS),$(TESTS)) -m "multiprocess or demo" -q --durations=25 || [ $$? -eq 5 ]

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Long checks at full size; each writes its result into benchmarks/campaigns/.
campaign: venv
	@test -n "$(NAME)" || { echo "usage: make campaign NAME=...; there are:"; ls benchmarks/campaigns/*.py 2>/dev/null; exit 2; }
	$(BIN)/python benchmarks/campaigns/$(NAME).py

# One archive of what a GPU machine without a network lacks, checked to import (benchmarks/gpu/README.md). The first time
# takes about fifteen minutes and 6 GB under build/.
gpu-bundle:
	@$(PYTHON) benchmarks/gpu/bundle/build.py

# The exact versions that `make venv` installs, from the environment as it is.
lock: venv
	@mkdir -p requirements
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' | grep -v '^megavlm' > requirements/cpu.lock

clean:
	rm -rf $(VENV) build dist
