"""
Text to image with one checkpoint, as Vast.ai's modifier of this name: `cfg_scale` is another word for `cfg`.
"""

from typing import Annotated, Any

from pydantic import BaseModel, Field

from comfy_worker.templates import Seed

CFG = 8.0


class Parameters(BaseModel):
    """
    The parameters, with the modifier's defaults.
    """

    prompt: str = Field("", description="What to draw.")
    negative_prompt: str = Field("", description="What to keep out of the picture.")
    width: int = Field(512, ge=16, le=16384, description="Width in pixels.")
    height: int = Field(512, ge=16, le=16384, description="Height in pixels.")
    seed: Annotated[Seed, Field(description="Equal seeds give equal pictures; drawn by chance.")]
    steps: int = Field(20, ge=1, le=10000, description="Sampling steps.")
    cfg: float | None = Field(
        None, ge=0, le=100, description="How closely to follow the prompt; 8 by default."
    )
    cfg_scale: float | None = Field(None, ge=0, le=100, description="The same as `cfg`.")
    sampler_name: str = Field("euler", description="Sampler by ComfyUI's name.")
    scheduler: str = Field("normal", description="Scheduler by ComfyUI's name.")
    denoise: float = Field(1.0, ge=0, le=1, description="How much may change.")
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
                "model": ["4", 0],
                "positive": ["6", 0],
                "negative": ["7", 0],
                "latent_image": ["5", 0],
            },
        },
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": params.ckpt_name}},
        "5": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": params.width, "height": params.height, "batch_size": 1},
        },
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": params.prompt, "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": params.negative_prompt, "clip": ["4", 1]}},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "image", "images": ["8", 0]}},
    }
