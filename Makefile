# Everything runs from .venv, which `make` creates; PYTHON names the interpreter to create it with.
PYTHON ?= python3
BIN := .venv/bin
# One more than there are cores, as many tests wait for servers and processes.
PARALLEL = -n $$(($$(nproc) + 1)) --dist worksteal
RUN := $(BIN)/python

.PHONY: help demo test coverage test-slow test-cpus bench lint format reference sbom install clean

help:  ## This list
	@sed -n "s/^\([a-z-]*\):[^#]*## /\1\t/p" $(MAKEFILE_LIST) | expand -t 12

install: .venv/.installed  ## Create .venv with everything pinned

.venv/.installed: pyproject.toml infra/constraints.txt $(wildcard sd_core/cpu/cpp/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c infra/constraints.txt -e '.[dev]'
	touch $@

demo: install  ## Render the quickstart with the demo model
	$(BIN)/sdbatch run jobs/examples/quickstart.yaml

lint: install  ## Lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## Mend lint and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: install  ## Write docs/reference.md from the code
	$(RUN) -m tests.reference

test: lint  ## All checks that take minutes: run before a commit
	$(RUN) -m pytest $(PARALLEL) -m 'not slow'

# Apart from `test`, which it makes half as long again.
coverage: install  ## Which lines the tests run
	$(RUN) -m pytest $(PARALLEL) -m 'not slow' --cov --cov-report=
	$(BIN)/coverage report --skip-covered

# Triton's kernels run in its interpreter; --no-deps, as torch for CUDA brings it along.
test-slow: install  ## Checks that take long or gigabytes
	$(BIN)/pip install --quiet --no-deps -c infra/constraints.txt triton
	$(RUN) -m pytest -m slow

# The model and the engine as on lesser CPUs: without AVX-512, without AVX. CPUS=avx2 is one of them.
CPUS ?= avx2 sse41
MODEL_TESTS := tests/parity $(addprefix tests/sd_core/,cpu engine model test_device.py \
	test_execution.py test_weight_cache.py)
cpu-avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
cpu-sse41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

test-cpus: install  ## Model and engine as on lesser CPUs
	$(foreach cpu,$(CPUS),$(cpu-$(cpu)) $(RUN) -m pytest $(PARALLEL) -m 'not slow' \
		$(MODEL_TESTS) &&) true

# OpenVINO is only ever a peer; --no-deps leaves out its telemetry.
bench: install  ## Speed beside peers, as JSON
	$(BIN)/pip install --quiet --no-deps -c infra/constraints.txt openvino
	$(RUN) -m tests.bench

# What is installed, with licences, as CycloneDX; fails where a licence or a version is not as wanted.
sbom: install  ## Licences of what is installed
	$(RUN) -m infra.sbom build/sbom.json

clean:  ## Remove what was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
