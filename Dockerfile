# Three images from one file:
#
#   docker build --tag nemo_xtoken:0.1.0 --target nemo2 .           for GPUs, on NVIDIA's last image with a NeMo 2 that trains
#   docker build --tag nemo_xtoken:0.1.0-bridge --target bridge .   for GPUs, on NVIDIA's newest image: Megatron-Bridge
#   docker build --tag nemo_xtoken:0.1.0-cpu --target cpu .         to try it out: docker run --rm nemo_xtoken:0.1.0-cpu
#
# Without --target it is nemo2.  Which to take, and how to run it with docker, enroot and pyxis: docs/clusters.md.

ARG VERSION=0.1.0

# --- the package as a wheel, made where nothing of it stays behind
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY nemo_xtoken nemo_xtoken
COPY recipes recipes
COPY conf conf
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .
COPY docker/install.sh /wheel/

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

# --- GPU, Megatron-Bridge.  26.08 has Megatron-Bridge 0.6.1, Megatron-core 0.19.1, Transformer Engine 2.16, transformers
# 5.12.1 and PyTorch 2.13: the newest image that Megatron-Bridge's documents name (docs/releases/known-issues.md there).
FROM nvcr.io/nvidia/nemo:26.08 AS bridge
ARG VERSION
LABEL org.opencontainers.image.title="nemo_xtoken (Megatron-Bridge)" \
      org.opencontainers.image.description="Cross-tokenizer distillation for NVIDIA NeMo at Megatron scale" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/nemo:26.08"
USER root
COPY --from=wheel /wheel /tmp/wheel
RUN sh /tmp/wheel/install.sh && rm -rf /tmp/wheel
# Any user may run it (docker run --user), so its home is everybody's.
RUN useradd --create-home --uid 10001 xtoken && chmod 1777 /home/xtoken
USER xtoken
# The image allows TF32 for products of float32; what this package promises of float32 holds without.  bf16 is as before.
ENV HOME=/home/xtoken \
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=0
WORKDIR /home/xtoken
CMD ["xtoken", "env"]

# --- GPU, NeMo 2.  25.11 has NeMo 2.6.0, Megatron-core 0.15.0, Transformer Engine 2.9, ModelOpt 0.37 and PyTorch 2.9: the
# newest image whose NeMo and Megatron-core fit each other for training.  26.02 has NeMo 2.7.0 beside Megatron-core 0.16.0,
# whose get_megatron_optimizer no longer takes what NeMo 2 gives it (no_weight_decay_cond); those after it have no NeMo 2.
FROM nvcr.io/nvidia/nemo:25.11 AS nemo2
ARG VERSION
LABEL org.opencontainers.image.title="nemo_xtoken" \
      org.opencontainers.image.description="Cross-tokenizer distillation for NVIDIA NeMo at Megatron scale" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/nemo:25.11"
USER root
COPY --from=wheel /wheel /tmp/wheel
RUN sh /tmp/wheel/install.sh && rm -rf /tmp/wheel
# Any user may run it (docker run --user), so its home is everybody's.
RUN useradd --create-home --uid 10001 xtoken && chmod 1777 /home/xtoken
USER xtoken
# The image allows TF32 for products of float32; what this package promises of float32 holds without.  bf16 is as before.
ENV HOME=/home/xtoken \
    TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=0
WORKDIR /home/xtoken
CMD ["xtoken", "env"]
