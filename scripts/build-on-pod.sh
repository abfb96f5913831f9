#!/usr/bin/env bash
# Builds one image on a fresh server and pushes it: Ubuntu, root, an x86 processor, much disk, no GPU.
#
#   DOCKERHUB_USERNAME=me DOCKERHUB_TOKEN=... MODEL_TYPE=sdxl bash build-on-pod.sh
#
# Run it again after a failure: what was built and fetched is kept by the builder. Variables, and more of them:
# docs/howto/ci.md. Exit codes: 0 done, 1 a required variable is missing, 64 wrong use, 69 no Docker, 70 too little disk,
# 75 the push failed again and again, else that of the tool that failed.
set -Eeuo pipefail

BASE_GB=10
EXTRA_GB=20
BUILDER=comfy-worker

say() { printf '%s\n' "$*"; }

end() {
  local code="$1"
  shift
  printf 'ERROR: %s\n' "$*" >&2
  exit "$code"
}

step() {
  STEP="$1"
  say "[$1] $2"
}

# Runs a command, or only shows it. Secrets are never arguments, so there is nothing to mask.
run() {
  if [[ "$DRY_RUN" == true ]]; then
    printf '+ %s\n' "$*"
  else
    "$@"
  fi
}

set_or_not() { if [[ -n "$1" ]]; then echo "(set)"; else echo "(not set)"; fi; }

read_variables() {
  : "${DOCKERHUB_USERNAME:?Set DOCKERHUB_USERNAME}"
  : "${DOCKERHUB_TOKEN:?Set DOCKERHUB_TOKEN}"
  MODEL_TYPE="${MODEL_TYPE:-hunyuan-instruct-nf4}"
  IMAGE_TAG="${IMAGE_TAG:-$DOCKERHUB_USERNAME/${DOCKERHUB_IMG:-worker-comfyui}:latest-$MODEL_TYPE}"
  # By default the repository that this script was cloned with; one that came by curl has none.
  REPO_URL="${REPO_URL:-$(git -C "$(dirname "${BASH_SOURCE[0]:-/}")" remote get-url origin 2>/dev/null || true)}"
  : "${REPO_URL:?Set REPO_URL}"
  BRANCH="${BRANCH:-main}"
  CUDA_LEVEL="${CUDA_LEVEL:-12.6}"
  COMFYUI_VERSION="${COMFYUI_VERSION:-}"
  PYTORCH_VERSION="${PYTORCH_VERSION:-}"
  HUGGINGFACE_ACCESS_TOKEN="${HUGGINGFACE_ACCESS_TOKEN:-}"
  PUSH="${PUSH:-true}"
  PRUNE="${PRUNE:-false}"
  NO_CACHE="${NO_CACHE:-false}"
  DRY_RUN="${DRY_RUN:-false}"
  SKIP_DISK_CHECK="${SKIP_DISK_CHECK:-false}"
  PUSH_RETRY_S="${PUSH_RETRY_S:-30}"
  [[ "$CUDA_LEVEL" == 12.6 || "$CUDA_LEVEL" == 12.8 ]] || end 64 "CUDA_LEVEL must be 12.6 or 12.8, not $CUDA_LEVEL"
  export CUDA_LEVEL COMFYUI_VERSION PYTORCH_VERSION HUGGINGFACE_ACCESS_TOKEN
}

banner() {
  say "Variant            $MODEL_TYPE"
  say "Image              $IMAGE_TAG"
  say "CUDA               $CUDA_LEVEL"
  say "Source             $REPO_URL at $BRANCH"
  say "Docker Hub token   $(set_or_not "$DOCKERHUB_TOKEN")"
  say "Hugging Face token $(set_or_not "$HUGGINGFACE_ACCESS_TOKEN")"
  [[ "$IMAGE_TAG" == *"$MODEL_TYPE" ]] || say "Warning: $IMAGE_TAG does not end in $MODEL_TYPE."
  [[ "$(uname -m)" == x86_64 ]] || say "Warning: this is no x86 machine; the build is emulated and takes many times longer."
}

have_docker() {
  if ! command -v docker >/dev/null; then
    run curl -fsSL https://get.docker.com -o "$WORK/get-docker.sh"
    run sh "$WORK/get-docker.sh"
  fi
  if [[ "$DRY_RUN" != true ]] && ! docker info >/dev/null 2>&1; then
    systemctl start docker >/dev/null 2>&1 || true
    for _ in 1 2 3 4 5; do
      docker info >/dev/null 2>&1 && break
      sleep 1
    done
    docker info >/dev/null 2>&1 || end 69 "Docker daemon is not running."
  fi
  docker buildx version >/dev/null 2>&1 || [[ "$DRY_RUN" == true ]] ||
    end 69 "Docker has no buildx: install the package docker-buildx-plugin."
  docker buildx inspect "$BUILDER" >/dev/null 2>&1 ||
    run docker buildx create --name "$BUILDER" --driver docker-container >/dev/null
  if [[ "$PRUNE" == true ]]; then
    run docker system prune --all --force --volumes
  fi
}

log_in() {
  if [[ "$DRY_RUN" == true ]]; then
    say "+ docker login --username $DOCKERHUB_USERNAME --password-stdin"
  elif [[ "$PUSH" == true ]]; then
    docker login --username "$DOCKERHUB_USERNAME" --password-stdin <<<"$DOCKERHUB_TOKEN"
  fi
}

check_variant() {
  local row names
  names="$(sed -n 's/^ *{ name = "\([^"]*\)".*/\1/p' docker-bake.hcl)"
  grep -qxF -- "$MODEL_TYPE" <<<"$names" ||
    end 64 "MODEL_TYPE must be one of $(paste -sd' ' <<<"$names"), not $MODEL_TYPE"
  row="$(grep -F "{ name = \"$MODEL_TYPE\"" docker-bake.hcl)"
  if [[ "$row" == *"token = true"* && -z "$HUGGINGFACE_ACCESS_TOKEN" ]]; then
    end 64 "$MODEL_TYPE holds gated models: accept their licence on Hugging Face and set HUGGINGFACE_ACCESS_TOKEN"
  fi
}

check_disk() {
  local models=0 folder need free
  if [[ -f "models/$MODEL_TYPE.toml" ]]; then
    models="$(awk '/^(size|about) *=/ { gsub(/[^0-9]/, "", $3); sum += $3 } END { printf "%d", sum / 1e9 + 1 }' \
      "models/$MODEL_TYPE.toml")"
  fi
  need=$((2 * (BASE_GB + models) + EXTRA_GB))
  folder="$(docker info --format '{{.DockerRootDir}}')"
  free="$(df -Pk "$folder" | awk 'NR == 2 { printf "%d", $4 * 1024 / 1e9 }')"
  say "Disk: $free GB free in $folder, $need GB wanted."
  if ((free < need)) && [[ "$SKIP_DISK_CHECK" != true ]]; then
    end 70 "$MODEL_TYPE wants $need GB free, there are $free GB. SKIP_DISK_CHECK=true builds all the same."
  fi
}

get_source() {
  run git clone --quiet --depth 1 --branch "$BRANCH" "$REPO_URL" "$WORK/source"
  if [[ "$DRY_RUN" != true ]]; then
    cd "$WORK/source"
    check_variant
    check_disk
  fi
}

bake() {
  local target="${MODEL_TYPE//./-}"
  local more=("$@")
  run docker buildx bake --builder "$BUILDER" --file docker-bake.hcl --set "$target.tags=$IMAGE_TAG" "$target" \
    "${more[@]}"
}

build() {
  local more=()
  if [[ "$NO_CACHE" == true ]]; then
    more+=(--no-cache)
  fi
  if [[ "$PUSH" != true ]]; then
    more+=(--load)
  fi
  bake "${more[@]}"
}

push() {
  local wait_s="$PUSH_RETRY_S" try
  if [[ "$PUSH" != true ]]; then
    say "PUSH=$PUSH: the image stays on this server."
    return
  fi
  for try in 1 2 3 4; do
    if bake --push; then
      run docker buildx imagetools inspect "$IMAGE_TAG" || true
      return
    fi
    if ((try < 4)); then
      say "The push failed; once more in $wait_s s."
      sleep "$wait_s"
      wait_s=$((wait_s * 2))
    fi
  done
  end 75 "The push of $IMAGE_TAG failed 4 times. Run the script again: what was built is kept."
}

next_steps() {
  say "Done. Next:"
  say "1. Make an endpoint with the image $IMAGE_TAG; see docs/howto/deploy-runpod.md for GPU and disk."
  say "2. Destroy this server to stop its charges."
}

main() {
  read_variables
  WORK="$(mktemp -d)"
  STEP="start"
  trap 'echo "ERROR: step $STEP failed." >&2' ERR
  trap 'rm -rf "$WORK"' EXIT
  cd "$WORK"
  # Docker's credentials go with the folder; the builder and what it has built stay.
  export BUILDX_CONFIG="${BUILDX_CONFIG:-$HOME/.docker/buildx}" DOCKER_CONFIG="$WORK/docker"
  mkdir -p "$DOCKER_CONFIG"

  banner
  step 1/5 "Docker"
  have_docker
  step 2/5 "Login"
  log_in
  step 3/5 "Source"
  get_source
  step 4/5 "Build: 30 to 60 minutes, the largest variants 90 to 150"
  build
  step 5/5 "Push"
  push
  next_steps
}

main "$@"
