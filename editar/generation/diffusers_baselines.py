"""Runners of the paper's baselines through diffusers (`pip install -e ".[baselines]"`).

The safety checker is never loaded: it paints pictures black, and black pictures would be scored unnoticed.
Noise comes from (seed, picture id) as in `editar.sampling`, one CPU stream per picture, so that a result
depends on neither its batch nor the order; the papers' scripts draw from one CUDA stream, which nobody
else can repeat.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from PIL import Image

from editar.config import BaselineConfig
from editar.errors import CheckpointError, ConfigError
from editar.runtime.hub import from_pretrained
from editar.sampling.decode import SampleSeeds

PIPELINES = {
    "instruct_pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "t2i_adapter": "StableDiffusionAdapterPipeline",
    "controlnet": "StableDiffusionControlNetPipeline",
}
CONDITION_MODELS = {"t2i_adapter": ("adapter", "T2IAdapter"), "controlnet": ("controlnet", "ControlNetModel")}
# k-diffusion, which InstructPix2Pix is run with, spreads the steps over all of 999..0.
SCHEDULERS: dict[str, tuple[str, dict[str, str]]] = {
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


class DiffusersEditor:
    """An `Editor` that asks a diffusers pipeline.

    Instruction pipelines edit the source; the others draw the caption under a condition picture, which
    then is the source: a depth map (near is bright), white edges on black, a coloured label map.
    """

    def __init__(self, cfg: BaselineConfig, benchmark: str, device: torch.device) -> None:
        """Raises ConfigError without diffusers or the weights, CheckpointError for weights that do not fit."""
        self.cfg, self.condition_model = cfg, cfg.condition_models.get(benchmark, "")
        self.size, self.batch = cfg.size, cfg.batch_size
        self.reads = "instruction" if cfg.pipeline == "instruct_pix2pix" else "caption"
        self.precision = cfg.precision if device.type == "cuda" else "fp32"
        dtype = torch.float16 if self.precision == "fp16" else torch.float32
        self.pipe = load_pipeline(cfg, self.condition_model, dtype).to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def describe(self) -> dict[str, object]:
        names = ("method", "pipeline", "base_model", "steps", "guidance", "image_guidance", "scheduler")
        settings = {name: getattr(self.cfg, name) for name in (*names, "negative_prompt", "seed")}
        settings |= {"condition_model": self.condition_model, "precision": self.precision, "safety_checker": "off"}
        return {"baseline": settings, "weights_sha256": weights_checksum(self.pipe)}

    def cost(self) -> dict[str, float]:
        return {}

    def __call__(self, sources: list[np.ndarray], texts: list[str], ids: list[str]) -> list[np.ndarray]:
        """(size, size, 3) uint8 each -> the same."""
        cfg = self.cfg
        pictures = [Image.fromarray(source) for source in sources]
        if cfg.pipeline == "t2i_adapter" and self.pipe.adapter.config.in_channels == 1:
            pictures = [picture.convert("L") for picture in pictures]
        options: dict[str, Any] = {"num_inference_steps": cfg.steps, "guidance_scale": cfg.guidance}
        if cfg.pipeline == "instruct_pix2pix":
            options["image_guidance_scale"] = cfg.image_guidance
        if cfg.negative_prompt:
            options["negative_prompt"] = [cfg.negative_prompt] * len(texts)
        generators = SampleSeeds(cfg.seed, ids).generators
        return [np.asarray(image) for image in self.pipe(texts, pictures, generator=generators, **options).images]


def load_pipeline(cfg: BaselineConfig, condition_model: str, dtype: torch.dtype) -> Any:
    """The pipeline on the CPU, without safety checker. Raises ConfigError or CheckpointError."""
    try:
        import diffusers
    except ImportError:
        raise ConfigError(f'baseline {cfg.method} needs diffusers: pip install -e ".[baselines]"') from None
    diffusers.utils.logging.set_verbosity_error()  # what is missing is said once, in one line
    options: dict[str, Any] = {"dtype": dtype, "low_cpu_mem_usage": False}  # True needs accelerate
    parts: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    if cfg.pipeline in CONDITION_MODELS:
        part, class_name = CONDITION_MODELS[cfg.pipeline]
        name, _, subfolder = condition_model.partition(":")
        parts[part] = from_pretrained(getattr(diffusers, class_name), name, subfolder=subfolder or None, **options)
    pipe = from_pretrained(getattr(diffusers, PIPELINES[cfg.pipeline]), cfg.base_model, **parts, **options)
    wanted = pipe.vae.config.latent_channels * (2 if cfg.pipeline == "instruct_pix2pix" else 1)
    if (found := pipe.unet.config.in_channels) != wanted:
        raise CheckpointError(f"{cfg.base_model}: its UNet takes {found} channels, {cfg.pipeline} needs {wanted}")
    if cfg.scheduler != "own":
        scheduler, settings = SCHEDULERS[cfg.scheduler]
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    return pipe


def weights_checksum(pipe: Any) -> str:
    """SHA-256 over all tensors of the pipeline's networks, as loaded."""
    total = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, tensor in module.state_dict().items():
                total.update(f"{part}.{name}".encode())
                total.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()
