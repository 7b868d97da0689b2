# The command line without torch: docker build -f infra/docker/client.Dockerfile -t sdbatch-client .
# Never built by its authors, who had no Docker engine; infra/README.md says what was checked.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/sdbatch
ENV PATH=/opt/sdbatch/bin:$PATH
COPY infra/constraints.txt infra/
COPY pyproject.toml README.md LICENSE ./
COPY sd_core sd_core
COPY jobs jobs
COPY worker worker
RUN pip install -c infra/constraints.txt .

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="sdbatch" \
      org.opencontainers.image.description="Submits, watches and collects Stable Diffusion v1 jobs" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/sdbatch /opt/sdbatch
ENV PATH=/opt/sdbatch/bin:$PATH PYTHONUNBUFFERED=1 HOME=/tmp
WORKDIR /work
USER 10001:10001
# A command, not a service: it has no health.
HEALTHCHECK NONE
ENTRYPOINT ["sdbatch"]
CMD ["--help"]
