"""Image + instruction -> image.

pipeline = EditPipeline.from_pretrained("reference/nano")
images = pipeline(image, "make the red circle blue", cfg_scale=1.5, seed=0, num_samples=4)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from editar.config import ConfigError, SamplingConfig, TrainConfig, check_sampling, override, to_dataclass
from editar.encoders.text import TextEncoder
from editar.encoders.vq import VQModel
from editar.images import batch_to_tensor, load_image, resize_and_crop, to_rgb, to_uint8
from editar.model.gpt import GPT
from editar.model.weights import load_gpt, load_vq
from editar.runtime.device import pick_device
from editar.runtime.files import CheckpointError
from editar.sampling.decode import SampleSeeds, generate


class EditPipeline:
    """Tokenizer, text encoder and GPT of one run, ready to edit."""

    def __init__(self, cfg: TrainConfig, gpt: GPT, tokenizer: VQModel, text: TextEncoder) -> None:
        self.cfg, self.gpt, self.tokenizer, self.text = cfg, gpt, tokenizer, text

    @classmethod
    def from_pretrained(
        cls, path: str | Path, device: str | torch.device = "auto", sampling: dict[str, Any] | None = None
    ) -> EditPipeline:
        """Load a run folder: config.yaml, model.safetensors, tokenizer.safetensors.

        `sampling` overrides the run's own sampling settings.
        """
        folder = Path(path)
        for name in ("config.yaml", "model.safetensors", "tokenizer.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} not found; give the folder that editar.train wrote")
        cfg = to_dataclass(TrainConfig, OmegaConf.load(folder / "config.yaml"))  # type: ignore[arg-type]
        cfg.sampling = override(cfg.sampling, sampling or {}, "sampling")
        check_sampling(cfg.sampling)
        place = pick_device(device) if isinstance(device, str) else device
        gpt, tokenizer = GPT(cfg.gpt), VQModel(cfg.tokenizer)
        load_gpt(gpt, folder, strict=True)
        load_vq(tokenizer, folder)
        for module in (gpt, tokenizer):
            module.to(place).eval().requires_grad_(False)
        return cls(cfg, gpt, tokenizer, TextEncoder(cfg.text, place))

    @property
    def device(self) -> torch.device:
        return self.gpt.tok_embeddings.weight.device

    def __call__(
        self,
        image: Image.Image | str | Path,
        instruction: str,
        cfg_scale: float | None = None,
        seed: int | None = None,
        num_samples: int = 1,
        **sampling: Any,
    ) -> list[Image.Image]:
        """Edit one picture (PIL or a file) -> `num_samples` square RGB pictures of the model's size."""
        changes = sampling | {k: v for k, v in (("cfg_scale", cfg_scale), ("seed", seed)) if v is not None}
        settings = override(self.cfg.sampling, changes, "sampling")
        check_sampling(settings)
        picture = to_rgb(image) if isinstance(image, Image.Image) else load_image(image)
        source = np.asarray(resize_and_crop(picture, self.cfg.image_size))
        ids = [f"sample-{draw}" for draw in range(num_samples)]
        outputs = self.edit_arrays([source] * num_samples, [instruction] * num_samples, ids, settings)
        return [Image.fromarray(output) for output in outputs]

    def edit_arrays(
        self, sources: list[np.ndarray], instructions: list[str], ids: list[str], sampling: SamplingConfig | None = None
    ) -> list[np.ndarray]:
        """Edit many pictures, (S, S, 3) uint8 each, in batches; `ids` choose each one's random stream."""
        settings = sampling or self.cfg.sampling
        size = self.cfg.image_size
        if any(source.shape != (size, size, 3) for source in sources):
            raise ConfigError(f"pictures must be {size}x{size}x3, found {sources[0].shape}")
        for id, instruction in zip(ids, instructions, strict=True):
            if not instruction.strip():
                raise ConfigError(f"the instruction of {id} is empty; say what to change")
        outputs: list[np.ndarray] = []
        for start in range(0, len(sources), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            codes = self.tokenizer.encode(batch_to_tensor(np.stack(sources[part])).to(self.device))
            codes = self.edit_codes(codes, instructions[part], ids[part], settings)
            outputs += list(to_uint8(self.decode(codes)))
        return outputs

    @torch.no_grad()
    def edit_codes(
        self, source_codes: torch.Tensor, instructions: list[str], ids: list[str], settings: SamplingConfig
    ) -> torch.Tensor:
        """Source codes (B, N) int64 on the pipeline's device -> target codes (B, N)."""
        text = self.text(instructions)
        return generate(self.gpt, source_codes, text, settings, SampleSeeds(settings.seed, ids))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, N) -> pictures (B, 3, S, S), not clamped."""
        return self.tokenizer.decode(codes)

    def reconstruct(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Pictures through the tokenizer alone: the ceiling of what the model can draw."""
        return [
            to_uint8(self.decode(self.tokenizer.encode(batch_to_tensor(image[None]).to(self.device))))[0]
            for image in images
        ]
