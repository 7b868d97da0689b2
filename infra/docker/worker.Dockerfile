# A worker: docker build -f infra/docker/worker.Dockerfile -t sdbatch-worker:cuda .
# Never built by its authors, who had no Docker engine; infra/README.md says what was checked.
#
# torch as it comes for Linux on x86-64 brings CUDA's libraries along, so the base needs none: of the
# machine, only the driver is used. For CPUs, there is a package index with a smaller torch:
#
#   docker build … --build-arg TORCH_INDEX_URL=<see PyTorch's page on how to install it>
#
# One image serves both; without a GPU it renders on the CPU.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
# For the kernels that CPUs with AVX-512 for bfloat16 run. Without a compiler torch's would serve.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/sdbatch
ENV PATH=/opt/sdbatch/bin:$PATH
COPY infra/constraints.txt infra/
# torch first and by itself: it is large and seldom changes. Its dependencies come below, from where
# all others come.
ARG TORCH_INDEX_URL=
RUN pip install -c infra/constraints.txt --no-deps ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
COPY pyproject.toml README.md LICENSE ./
COPY sd_core sd_core
COPY jobs jobs
COPY worker worker
RUN pip install -c infra/constraints.txt '.[worker]'

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="sdbatch worker" \
      org.opencontainers.image.description="Renders shards of Stable Diffusion v1 jobs" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sdbatch /opt/sdbatch
# A volume that is mounted on a folder of the image is given to its owner.
RUN install --directory --owner=10001 --group=10001 /cache
ENV PATH=/opt/sdbatch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    HF_HOME=/cache/huggingface \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    SDBATCH_CACHE=/cache \
    SDBATCH_METRICS=0.0.0.0:9400
WORKDIR /tmp
USER 10001:10001
EXPOSE 9400
STOPSIGNAL SIGTERM
# Of the first process, where there are several.
HEALTHCHECK --interval=20s --timeout=5s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9400/healthz', timeout=4)"]
ENTRYPOINT ["sdbatch"]
CMD ["worker"]
