# Two published stages: `base` is everything but models, `final` is base plus one variant of models/.
# Written for the plainest builder too: no here-documents, no COPY --link, secrets as files.

ARG BASE_IMAGE=docker.io/nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.9

FROM ${UV_IMAGE} AS uv

FROM ${BASE_IMAGE} AS base
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive

# tcmalloc's package is called ...4t64 from Ubuntu 24.04 on. SSH host keys are made at the first start, never here.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates curl ffmpeg git libgl1 libglib2.0-0 libsm6 libxext6 libxrender1 openssh-server python3 \
        python3-venv tini wget \
        "$(apt-cache search --names-only '^libtcmalloc-minimal4(t64)?$' | cut -d' ' -f1 | head -n 1)" \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && apt-get clean \
    && ldconfig -p | grep -q libtcmalloc

COPY --from=uv /uv /uvx /usr/local/bin/
ARG UV_LINK_MODE=copy
ARG UV_NO_CACHE=1
ARG UV_PYTHON_DOWNLOADS=never
ARG UV_COMPILE_BYTECODE=1

# comfy-cli, apart from everything: derived images call it, the worker does not.
ARG COMFY_CLI_VERSION=1.23.0
RUN uv venv --quiet /opt/tools \
    && uv pip install --quiet --python /opt/tools/bin/python "comfy-cli==${COMFY_CLI_VERSION}" \
    && ln -s /opt/tools/bin/comfy /usr/local/bin/comfy

# torch, once, from one index, in ComfyUI's own environment. CUDA_VERSION_FOR_COMFY is 12.8, 12.6, ... or `cpu`;
# torchvision and torchaudio follow from torch. ENABLE_PYTORCH_UPGRADE is taken from old build scripts and changes nothing:
# there is no second install to upgrade with.
ARG CUDA_VERSION_FOR_COMFY=12.8
ARG PYTORCH_VERSION=2.11.0
ARG PYTORCH_INDEX_URL=
ARG ENABLE_PYTORCH_UPGRADE=false
RUN case "${CUDA_VERSION_FOR_COMFY}" in cpu) flavour=cpu ;; *) flavour="cu$(echo "${CUDA_VERSION_FOR_COMFY}" | tr -d .)" ;; esac \
    && uv venv --quiet --seed /comfyui/.venv \
    && uv pip install --quiet --python /comfyui/.venv/bin/python \
        --index-url "${PYTORCH_INDEX_URL:-https://download.pytorch.org/whl/${flavour}}" \
        "torch==${PYTORCH_VERSION}" torchvision torchaudio

# What users and derived images call `pip`, `uv pip` and `python` is ComfyUI's environment. The worker's own interpreter
# is only ever called by its full path.
ENV VIRTUAL_ENV=/comfyui/.venv \
    PATH=/comfyui/.venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    PIP_PREFER_BINARY=1 \
    PIP_NO_INPUT=1 \
    CMAKE_BUILD_PARALLEL_LEVEL=8 \
    DO_NOT_TRACK=1 \
    HF_HUB_DISABLE_TELEMETRY=1

# A release (0.27.0 and v0.27.0 are the same). The Manager comes with it; the packages that a custom node must not
# replace are written down beside it.
ARG COMFYUI_VERSION=0.27.0
ARG COMFYUI_REPOSITORY=https://github.com/Comfy-Org/ComfyUI.git
COPY docker/versions.py /opt/build/
RUN git clone --quiet --depth 1 --branch "v${COMFYUI_VERSION#v}" -c advice.detachedHead=false \
        "${COMFYUI_REPOSITORY}" /tmp/comfyui \
    && cp -a /tmp/comfyui/. /comfyui/ \
    && rm -rf /tmp/comfyui \
    && uv pip freeze --quiet --exclude-editable | grep -E '^(torch|torchvision|torchaudio)==' > /comfyui/constraints.txt \
    && uv pip install --quiet -c /comfyui/constraints.txt -r /comfyui/requirements.txt -r /comfyui/manager_requirements.txt \
    && uv pip freeze --quiet --exclude-editable | grep -E '^(torch|torchvision|torchaudio|numpy|transformers)==' \
        > /comfyui/constraints.txt \
    && python -m compileall -q -j 0 -x '/\.venv/' /comfyui \
    && comfy --skip-prompt set-default /comfyui \
    && python /opt/build/versions.py "${CUDA_VERSION_FOR_COMFY}" > /comfyui/versions.json

# The worker: its own environment, without torch, with the versions that the tests ran with.
COPY pyproject.toml constraints.txt README.md LICENSE /opt/build/
RUN uv venv --quiet /opt/worker \
    && uv pip install --quiet --python /opt/worker/bin/python -c /opt/build/constraints.txt \
        -r /opt/build/pyproject.toml --extra models
COPY src/ /opt/build/src/
COPY workflows/ /opt/build/workflows/
RUN uv pip install --quiet --python /opt/worker/bin/python --no-deps /opt/build \
    && /opt/worker/bin/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)' \
    && ln -s /opt/worker/bin/comfy-worker /usr/local/bin/comfy-worker

# The PyWorker of Vast.ai: its SDK in an environment of its own, without what a worker never uses. `comfy-worker vast`
# runs by it. `none` leaves it out (50 MB).
ARG VAST_SDK_VERSION=1.9.1
COPY requirements-vast.txt /opt/build/
RUN if [ "${VAST_SDK_VERSION}" != none ]; then \
        uv venv --quiet /opt/vast \
        && uv pip install --quiet --python /opt/vast/bin/python --no-deps -c /opt/build/constraints.txt \
            -r /opt/build/requirements-vast.txt "vastai==${VAST_SDK_VERSION}" \
        && /opt/vast/bin/python -c 'import vastai.serverless.server.worker'; \
    fi
COPY --chmod=0755 docker/bin/ /usr/local/bin/
COPY --chmod=0755 docker/start.sh /start.sh
COPY docker/healthcheck.py docker/variant.py /opt/worker/
COPY handler.py test_input.json /
COPY models/ /opt/worker/models/
COPY test_resources/workflows/ /opt/worker/test_resources/workflows/

# The fitness checks of the SDK would make a CUDA context of their own; the worker looks at the GPU itself.
ENV COMFYUI_PATH=/comfyui \
    COMFYUI_PYTHON=/usr/local/bin/comfyui-python \
    VAST_PYTHON=/opt/vast/bin/python \
    RUNPOD_DEBUG_LEVEL=INFO \
    RUNPOD_SKIP_AUTO_SYSTEM_CHECKS=true \
    RUNPOD_SKIP_GPU_CHECK=true

LABEL org.opencontainers.image.title="comfy-worker" \
      org.opencontainers.image.description="Any ComfyUI workflow as an API call on serverless GPUs." \
      org.opencontainers.image.licenses="MIT" \
      comfyui.version="${COMFYUI_VERSION}" \
      torch.version="${PYTORCH_VERSION}" \
      torch.cuda="${CUDA_VERSION_FOR_COMFY}" \
      comfy-worker.variant="base"

WORKDIR /
EXPOSE 8188 8000 22
HEALTHCHECK --interval=30s --timeout=10s --start-period=180s --retries=3 \
    CMD ["/opt/worker/bin/python", "/opt/worker/healthcheck.py"]
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["/start.sh"]

# One variant in place: which files, nodes and packages is all in models/<variant>.toml. Its models come in eight layers,
# since registries and builders fail on layers of many tens of gigabytes; a part without a file is an empty layer.
# ALLOW_UNPINNED=false refuses models without a pinned revision and checksum; releases are built that way.
FROM base AS final
ARG MODEL_TYPE=base
ARG ALLOW_UNPINNED=true
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 1/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 2/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 3/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 4/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 5/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 6/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 7/8
RUN --mount=type=secret,id=HF_TOKEN fetch-models "${MODEL_TYPE}" 8/8
RUN /opt/worker/bin/python /opt/worker/variant.py "${MODEL_TYPE}"
LABEL comfy-worker.variant="${MODEL_TYPE}"
