"""
Image to image with one checkpoint, as Vast.ai's modifier of this name: `cfg_scale` is another word for `cfg`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from comfy_worker.templates import Image, Seed

CFG = 8.0


class Parameters(BaseModel):
    """
    The parameters, with the modifier's defaults.
    """

    prompt: str = Field("", description="What to draw.")
    negative_prompt: str = Field("", description="What to keep out of the picture.")
    input_image: Image = Field(description="The picture to start from: a URL, a data URI, base64, or a name.")
    seed: Annotated[Seed, Field(description="Equal seeds give equal pictures; drawn by chance.")]
    steps: int = Field(20, ge=1, le=10000, description="Sampling steps.")
    cfg: float | None = Field(
        None, ge=0, le=100, description="How closely to follow the prompt; 8 by default."
    )
    cfg_scale: float | None = Field(None, ge=0, le=100, description="The same as `cfg`.")
    sampler_name: str = Field("dpmpp_2m", description="Sampler by ComfyUI's name.")
    scheduler: str = Field("normal", description="Scheduler by ComfyUI's name.")
    denoise: float = Field(0.87, ge=0, le=1, description="How much of the picture may change.")
    ckpt_name: str = Field(
        "v1-5-pruned-emaonly-fp16.safetensors", description="File in ComfyUI's folder of checkpoints."
    )


def build(params: Parameters) -> dict[str, Any]:
    """
    Return the workflow.
    """
    cfg = next((value for value in (params.cfg, params.cfg_scale) if value is not None), CFG)
    return {
        "3": {
            "class_type": "KSampler",
            "inputs": {
                "seed": params.seed,
                "steps": params.steps,
                "cfg": cfg,
                "sampler_name": params.sampler_name,
                "scheduler": params.scheduler,
                "denoise": params.denoise,
                "model": ["14", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["12", 0],
            },
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": params.prompt, "clip": ["14", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": params.negative_prompt, "clip": ["14", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["14", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "image", "images": ["8", 0]}},
        "10": {"class_type": "LoadImage", "inputs": {"image": params.input_image}},
        "12": {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["14", 2]}},
        "14": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": params.ckpt_name}},
    }
