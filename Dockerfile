# An image with everything that the workflow and its jobs need: make image. For clusters there is apptainer.def.
# docker run --gpus all --volume "$PWD":/work sublora:<version> snakemake --cores 8
FROM python:3.11-slim

# torch.compile calls a C compiler where it runs. Debian keeps no older version that could be named.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/sublora
COPY requirements.lock ./
RUN pip install --no-cache-dir --requirement requirements.lock
COPY LICENSE README.md pyproject.toml ./
COPY sublora ./sublora
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

WORKDIR /work
CMD ["sublora", "--help"]
