# Everything runs from .venv, which `make` creates; PYTHON names the interpreter to create it with.
PYTHON ?= python3
BIN := .venv/bin
RUN := $(BIN)/python

.PHONY: demo test test-slow test-cpus bench lint reference sbom install clean

install: .venv/.installed

.venv/.installed: pyproject.toml infra/constraints.txt $(wildcard sd_core/cpp/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c infra/constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/sdbatch run jobs/examples/quickstart.yaml

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# docs/reference.md, from the code.
reference: install
	$(RUN) -m tests.reference

test: lint
	$(RUN) -m pytest -n auto --dist worksteal -m 'not slow'

test-slow: install
	$(RUN) -m pytest -m slow

# The model and the engine as on lesser CPUs: without AVX-512, without AVX. CPUS=avx2 is one of them.
CPUS ?= avx2 sse41
MODEL_TESTS := tests/parity $(wildcard $(foreach part,device engine execution kept kernels mkldnn \
	model products saving,tests/sd_core/test_$(part).py))
cpu-avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
cpu-sse41 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41

test-cpus: install
	$(foreach cpu,$(CPUS),$(cpu-$(cpu)) $(RUN) -m pytest -n auto --dist worksteal -m 'not slow' \
		$(MODEL_TESTS) &&) true

# OpenVINO is only ever a peer; --no-deps leaves out its telemetry.
bench: install
	$(BIN)/pip install --quiet --no-deps -c infra/constraints.txt openvino
	$(RUN) -m tests.bench

# What is installed, with licences, as CycloneDX; fails where a licence or a version is not as wanted.
sbom: install
	$(RUN) -m infra.sbom build/sbom.json

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
