# `make demo` and `make verify` need python3 >= 3.11 and make; everything else goes into .venv/.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTS ?= tests

# One thread a test process: with -n 2 the pool of each torch would fight the other's.
VERIFY_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help install demo verify verify-slow lint types secrets test audit docs format wheel clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

install: $(INSTALLED)  ## the environment, in .venv/

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "qvae needs Python 3.11 or later; found: $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "1 of 2, minutes: PyTorch; to fetch: 0.2 GB if pip finds its build for CPUs, several GB with CUDA"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	@echo "2 of 2, minutes: diffusers, ONNX Runtime, TensorRT-RTX and the tools of make verify; on disk: 1 GB"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,rtx]'
	@touch $@

demo: $(INSTALLED)  ## the main job on this machine: engines, parity, latency, a picture; into out/demo/
	bash benchmarks/demo.sh $(BIN) out/demo $(BACKEND)

verify: lint types secrets test  ## every check: lint, strict types, secrets, tests with parity

verify-slow: verify  ## and the checks that take minutes each
	$(VERIFY_ENV) $(BIN)/python -m pytest -n 2 --dist loadscope -m slow $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/line_budget.py
	test ! -x $(BIN)/hadolint || $(BIN)/hadolint integrations/docker/Dockerfile

types: $(INSTALLED)
	$(BIN)/mypy

secrets: $(INSTALLED)
	.ci/secrets $(BIN)

test: $(INSTALLED)
	$(VERIFY_ENV) $(BIN)/python -m pytest -n 2 --dist loadscope -m 'not slow' $(TESTS)

audit: $(INSTALLED)  ## known vulnerabilities in what is installed (asks an advisory service)
	$(BIN)/python .ci/audit.py $(BIN)/pip-audit

docs: $(INSTALLED)  ## the guides, warnings as errors; into out/site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(BIN)/python tools/write_commands.py docs/commands.md
	$(BIN)/python tools/write_api.py docs/api.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(INSTALLED)  ## write the formatting that lint asks for
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED)  ## dist/qvae_trt-*.whl
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## what make made, less .venv/
	rm -rf out dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
