# `docker buildx bake <target>` builds one image; a variant is a row below and a file in models/.
# Values come from environment variables of these names: RELEASE_VERSION=1.2.0 docker buildx bake sdxl --push

variable "DOCKERHUB_REPO" { default = "runpod" }
variable "DOCKERHUB_IMG" { default = "worker-comfyui" }
variable "RELEASE_VERSION" { default = "latest" }
variable "REVISION" { default = "" }
variable "CREATED" { default = "" }

# Empty means what the Dockerfile says: versions stand there, once.
variable "COMFYUI_VERSION" { default = "" }
variable "PYTORCH_VERSION" { default = "" }
variable "PYTORCH_INDEX_URL" { default = "" }
variable "ENABLE_PYTORCH_UPGRADE" { default = "" }
variable "VAST_SDK_VERSION" { default = "" } # `none` leaves the PyWorker of Vast.ai out

# `false` refuses models without a checksum: how a release is built.
variable "ALLOW_UNPINNED" { default = "" }

# Other CUDA than the row says, for every target: 12.6 or 12.8.
variable "CUDA_LEVEL" { default = "" }
variable "CUDA_IMAGES" {
  default = {
    "12.6" = "docker.io/nvidia/cuda:12.6.3-cudnn-runtime-ubuntu24.04"
    "12.8" = "docker.io/nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04"
    "cpu"  = "docker.io/library/ubuntu:24.04"
  }
}

# name: the tag's suffix, and models/<name>.toml where there is one. token: the build is given a Hugging Face token.
# publish: the licences let anybody pass the image on, so a release does. small: it fits on GitHub's runners.
variable "IMAGE_VARIANTS" {
  default = [
    { name = "base",                   stage = "base",   cuda = "12.8", token = false, publish = true,  small = true },
    { name = "base-cuda12.8.1",        stage = "base",   cuda = "12.8", token = false, publish = true,  small = true },
    { name = "base-cuda12.6.3",        stage = "base",   cuda = "12.6", token = false, publish = true,  small = true },
    { name = "base-cpu",               stage = "base",   cuda = "cpu",  token = false, publish = true,  small = true },
    { name = "sdxl",                   stage = "final",  cuda = "12.8", token = false, publish = true,  small = true },
    { name = "sd3",                    stage = "final",  cuda = "12.8", token = true,  publish = false, small = true },
    { name = "flux1-schnell",          stage = "final",  cuda = "12.8", token = true,  publish = true,  small = false },
    { name = "flux1-dev",              stage = "final",  cuda = "12.8", token = true,  publish = false, small = false },
    { name = "flux1-dev-fp8",          stage = "final",  cuda = "12.8", token = false, publish = false, small = false },
    { name = "z-image-turbo",          stage = "final",  cuda = "12.8", token = true,  publish = true,  small = false },
    { name = "hunyuan-instruct-nf4",   stage = "final",  cuda = "12.8", token = false, publish = false, small = false },
    { name = "hunyuan-instruct-int8",  stage = "final",  cuda = "12.8", token = false, publish = false, small = false },
  ]
}

group "default" {
  targets = [for row in IMAGE_VARIANTS : replace(row.name, ".", "-") if length(regexall("^hunyuan", row.name)) == 0]
}

group "all" {
  targets = ["variant"]
}

group "release" {
  targets = [for row in IMAGE_VARIANTS : replace(row.name, ".", "-") if row.publish]
}

group "small" {
  targets = [for row in IMAGE_VARIANTS : replace(row.name, ".", "-") if row.small]
}

target "variant" {
  name      = replace(row.name, ".", "-")
  matrix    = { row = IMAGE_VARIANTS }
  target    = row.stage
  platforms = ["linux/amd64"]
  args = {
    MODEL_TYPE             = row.name
    BASE_IMAGE             = CUDA_IMAGES[row.cuda == "cpu" || CUDA_LEVEL == "" ? row.cuda : CUDA_LEVEL]
    CUDA_VERSION_FOR_COMFY = row.cuda == "cpu" || CUDA_LEVEL == "" ? row.cuda : CUDA_LEVEL
    COMFYUI_VERSION        = COMFYUI_VERSION == "" ? null : COMFYUI_VERSION
    PYTORCH_VERSION        = PYTORCH_VERSION == "" ? null : PYTORCH_VERSION
    PYTORCH_INDEX_URL      = PYTORCH_INDEX_URL == "" ? null : PYTORCH_INDEX_URL
    ALLOW_UNPINNED         = ALLOW_UNPINNED == "" ? null : ALLOW_UNPINNED
    ENABLE_PYTORCH_UPGRADE = ENABLE_PYTORCH_UPGRADE == "" ? null : ENABLE_PYTORCH_UPGRADE
    VAST_SDK_VERSION       = VAST_SDK_VERSION == "" ? null : VAST_SDK_VERSION
  }
  secret = row.token ? ["id=HF_TOKEN,env=HUGGINGFACE_ACCESS_TOKEN"] : []
  tags   = ["${DOCKERHUB_REPO}/${DOCKERHUB_IMG}:${RELEASE_VERSION}-${row.name}"]
  labels = {
    "org.opencontainers.image.version"  = RELEASE_VERSION
    "org.opencontainers.image.revision" = REVISION
    "org.opencontainers.image.created"  = CREATED
  }
}
