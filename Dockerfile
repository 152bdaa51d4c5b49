# Two images from one file:
#
#   docker build --tag nemo_xtoken:0.1.0 .                       for GPUs, on NVIDIA's NeMo image
#   docker build --tag nemo_xtoken:0.1.0-cpu --target cpu .      for trying it out: docker run --rm nemo_xtoken:0.1.0-cpu
#
# How to run them with docker, enroot and pyxis: docs/clusters.md.

ARG VERSION=0.1.0

# --- the package as a wheel, made where nothing of it stays behind
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY nemo_xtoken nemo_xtoken
COPY recipes recipes
COPY conf conf
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

# --- CPU: the whole NeMo stack without a GPU, `make demo` inside
FROM python:3.11-slim-bookworm AS cpu
ARG VERSION
# One more package index, such as the one for PyTorch's CPU builds; without it the image is larger by gigabytes.
ARG TORCH_INDEX=""
LABEL org.opencontainers.image.title="nemo_xtoken (CPU)" \
      org.opencontainers.image.description="Cross-tokenizer distillation for NVIDIA NeMo, to be tried out without a GPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN apt-get update \
 && apt-get install --yes --no-install-recommends git make \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1000 xtoken
USER xtoken
WORKDIR /home/xtoken/nemo_xtoken
COPY --chown=xtoken Makefile constraints.txt pyproject.toml README.md LICENSE ./
COPY --chown=xtoken nemo_xtoken nemo_xtoken
COPY --chown=xtoken recipes recipes
COPY --chown=xtoken conf conf
ENV PIP_NO_CACHE_DIR=1
RUN make install TORCH_INDEX="${TORCH_INDEX}"
ENV PATH=/home/xtoken/nemo_xtoken/.venv/bin:$PATH
CMD ["make", "demo"]

# --- GPU.  25.11 has NeMo 2.6.0, Megatron-core 0.15.0, Transformer Engine 2.9, ModelOpt 0.37 and PyTorch 2.9: the newest
# image whose NeMo and Megatron-core fit each other for training.  26.02 has NeMo 2.7.0 beside Megatron-core 0.16.0, whose
# get_megatron_optimizer no longer takes what NeMo 2 gives it (no_weight_decay_cond); the images after it have no NeMo 2.
FROM nvcr.io/nvidia/nemo:25.11 AS gpu
ARG VERSION
LABEL org.opencontainers.image.title="nemo_xtoken" \
      org.opencontainers.image.description="Cross-tokenizer distillation for NVIDIA NeMo at Megatron scale" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/nemo:25.11"
USER root
COPY --from=wheel /wheel /tmp/wheel
# Nothing of theirs is upgraded: the wheel goes in without what it depends on, then the few things that are not there in
# any version, and the build fails if a package that was there has changed.
RUN set -eu; \
    install() { if python -m pip --version >/dev/null 2>&1; then python -m pip "$@"; else uv pip "$@"; fi; }; \
    install freeze | sort > /tmp/before; \
    install install --no-cache-dir --no-deps /tmp/wheel/*.whl; \
    xtoken env --missing > /tmp/missing; \
    if [ -s /tmp/missing ]; then install install --no-cache-dir --no-deps --requirement /tmp/missing; fi; \
    install freeze | sort > /tmp/after; \
    changed=$(comm -23 /tmp/before /tmp/after); \
    if [ -n "$changed" ]; then echo "changed: $changed" >&2; exit 1; fi; \
    xtoken env; \
    rm -rf /tmp/wheel /tmp/before /tmp/after /tmp/missing
# Any user may run it (docker run --user), so its home is everybody's.
RUN useradd --create-home --uid 10001 xtoken && chmod 1777 /home/xtoken
USER xtoken
ENV HOME=/home/xtoken
WORKDIR /home/xtoken
CMD ["xtoken", "env"]
