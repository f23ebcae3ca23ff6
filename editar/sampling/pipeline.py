"""Image + instruction -> image.

pipeline = EditPipeline.from_pretrained("reference/nano")
images = pipeline(image, "make the red circle blue", cfg_scale=1.5, seed=0, num_samples=4)
images = pipeline(image, "make the red circle blue", mask="mask.png")  # the rest keeps the source's codes
images = pipeline(None, "a red circle")  # from text alone; pipeline(image) and pipeline() drop the text
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from editar.config import SamplingConfig, TrainConfig, from_yaml, override
from editar.errors import CheckpointError, ConfigError
from editar.images import batch_to_tensor, load_image, resize_and_crop, to_rgb, to_uint8
from editar.models.gpt import GPT
from editar.models.text import TextEncoder
from editar.models.vq import VQModel
from editar.runtime.device import pick_device, pick_dtype
from editar.sampling.batching import automatic_batch, in_batches
from editar.sampling.decode import SampleSeeds
from editar.sampling.engine import Engine, Progress
from editar.sampling.masks import known_codes_outside, load_mask
from editar.sampling.stats import GenerationStats
from editar.weights.load import load_gpt, load_vq

AT_ONCE = 8  # pictures in the tokenizer, whose activations are large


class EditPipeline:
    """Tokenizer, text encoder and GPT of one run, ready to edit. `stats` tells what sampling cost so far."""

    def __init__(self, cfg: TrainConfig, gpt: GPT, tokenizer: VQModel, text: TextEncoder, **engine: Any) -> None:
        self.cfg, self.gpt, self.tokenizer, self.text = cfg, gpt, tokenizer, text
        self.engine = Engine(gpt, **engine)
        self.stats = GenerationStats()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        sampling: dict[str, Any] | None = None,
        compile: bool | None = None,
        int8: bool = False,
        dtype: str = "auto",
        text_name: str | None = None,
    ) -> EditPipeline:
        """Load a run folder: config.yaml, model.safetensors, tokenizer.safetensors.

        `sampling` overrides the run's own sampling settings; `compile` (None: on a
        GPU) and `int8` are the engine's. `dtype` is the GPT's: `float32`, `bfloat16`, or `auto`, bfloat16 on
        a GPU as officially; the tokenizer stays float32. `text_name` is where the text encoder lies here
        (hub id or folder), if not where config.yaml says.
        """
        folder = Path(path)
        for name in ("config.yaml", "model.safetensors", "tokenizer.safetensors"):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: {name} not found; give the folder that editar.train wrote")
        cfg = from_yaml(TrainConfig, folder / "config.yaml")
        cfg.sampling = override(cfg.sampling, sampling or {}, "sampling")
        cfg.text.name = text_name or cfg.text.name
        place = pick_device(device) if isinstance(device, str) else device
        gpt, tokenizer = GPT(cfg.gpt), VQModel(cfg.tokenizer)
        load_gpt(gpt, folder, strict=True)
        load_vq(tokenizer, folder)
        for module in (gpt, tokenizer):
            module.to(place).eval().requires_grad_(False)
        gpt.to(pick_dtype("bfloat16" if dtype == "auto" else dtype, place))
        return cls(cfg, gpt, tokenizer, TextEncoder(cfg.text, place), compile=compile, int8=int8)

    @property
    def device(self) -> torch.device:
        return self.gpt.tok_embeddings.weight.device

    @property
    def batch_size(self) -> int:
        """Results per batch by the run's settings, automatic where they say 0."""
        return self._batch_size(self.cfg.sampling)

    def _batch_size(self, settings: SamplingConfig) -> int:
        weight = self.gpt.output.weight
        branches = 2 if settings.cfg_scale > 1 else 1
        held = self.engine.held_bytes  # reused or given back, so a second call finds the same size
        return settings.batch_size or automatic_batch(self.gpt.cfg, weight.device, weight.dtype, branches, held)

    def __call__(
        self,
        image: Image.Image | str | Path | None = None,
        instruction: str | None = None,
        cfg_scale: float | None = None,
        seed: int | None = None,
        num_samples: int = 1,
        mask: Image.Image | np.ndarray | str | Path | None = None,
        mask_dilate: int = 1,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Image.Image]:
        """Edit one picture (PIL or a file) -> `num_samples` square RGB pictures of the model's size.

        None drops a condition, as in training: without image the text alone decides (text-to-image), without
        instruction the image alone, without both nothing (unconditional). Guidance acts on the text only. `mask`,
        of the picture's own size, is white where the edit may change something, grown by `mask_dilate` codes;
        elsewhere the source's codes stay. `progress` is called with every number of codes written, in all
        num_samples * N.
        """
        changes = sampling | {k: v for k, v in (("cfg_scale", cfg_scale), ("seed", seed)) if v is not None}
        settings = override(self.cfg.sampling, changes, "sampling")
        source, masks = None, None
        if image is not None:
            picture = to_rgb(image) if isinstance(image, Image.Image) else load_image(image)
            source = np.asarray(resize_and_crop(picture, self.cfg.image_size))
            masks = None if mask is None else [load_mask(mask, picture.size, self.cfg.image_size)]
        elif mask is not None:
            raise ConfigError("a mask needs an image, whose codes stay outside of it")
        ids = [f"sample-{draw}" for draw in range(num_samples)]
        outputs = self.edit_arrays([source], [instruction], ids, settings, masks, mask_dilate, num_samples, progress)
        return [Image.fromarray(output) for output in outputs]

    def edit_arrays(
        self,
        sources: Sequence[np.ndarray | None],
        instructions: Sequence[str | None],
        ids: list[str],
        sampling: SamplingConfig | None = None,
        masks: list[np.ndarray] | None = None,
        mask_dilate: int = 1,
        samples: int = 1,
        progress: Progress | None = None,
        finish: Callable[[torch.Tensor], Any] = to_uint8,
    ) -> list[Any]:
        """Edit many pictures, (S, S, 3) uint8 each, in batches -> `samples` results each, picture by picture.

        `ids`, one per result, choose its random stream. None among `sources` and `instructions`, `masks` (S, S)
        bool and `progress` as in a call. `finish` makes of a batch (B, 3, S, S), not clamped, what is returned one
        by one: (S, S, 3) uint8 by default.
        """
        settings = sampling or self.cfg.sampling
        size = self.cfg.image_size
        if wrong := [source.shape for source in sources if source is not None and source.shape != (size, size, 3)]:
            raise ConfigError(f"pictures must be {size}x{size}x3, found {wrong[0]}")
        if len(ids) != samples * len(sources):
            raise ConfigError(f"{len(sources)} pictures of {samples} samples need as many ids, found {len(ids)}")
        for id, instruction in zip(ids[::samples], instructions, strict=True):
            if instruction is not None and not instruction.strip():
                raise ConfigError(f"the instruction of {id} is empty; say what to change, or give None for no text")
        blank = np.zeros((size, size, 3), np.uint8)

        def edit(pictures: slice, draws: slice) -> list[Any]:
            dropped = torch.tensor([source is None for source in sources[pictures]], device=self.device)
            codes = self.encode(np.stack([blank if source is None else source for source in sources[pictures]]))
            known_codes = None if masks is None else known_codes_outside(codes, masks[pictures], mask_dilate)
            count = draws.stop - draws.start
            chosen = [id for i in range(len(sources))[pictures] for id in ids[i * samples :][draws]]
            texts = instructions[pictures]
            codes = self.edit_codes(codes, texts, chosen, settings, known_codes, count, progress, dropped)
            return list(finish(self.decode(codes)))

        most = self._batch_size(settings)
        outputs: list[Any] = []
        if samples == 1:
            for batch in in_batches(len(sources), most, lambda part: edit(part, slice(0, 1)), self._recover):
                outputs += batch
            return outputs
        for i in range(len(sources)):
            for batch in in_batches(samples, most, partial(edit, slice(i, i + 1)), self._recover):
                outputs += batch
        return outputs

    def _recover(self) -> None:
        """After running out of memory: give back what a smaller batch does not need."""
        self.engine.release()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.no_grad()
    def edit_codes(
        self,
        source_codes: torch.Tensor,
        instructions: Sequence[str | None],
        ids: list[str],
        settings: SamplingConfig,
        known_codes: torch.Tensor | None = None,
        samples: int = 1,
        progress: Progress | None = None,
        drop_image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Source codes (I, N) int64 on the pipeline's device -> target codes (I * samples, N).

        `known_codes` (I, N) holds codes that are given, -1 elsewhere; `ids` has one entry per result. The null
        tables stand in for instructions that are None and for sources where `drop_image` (I,) bool is True.
        """
        text = self.text([instruction or "" for instruction in instructions]).to(self.gpt.output.weight.dtype)
        absent = torch.tensor([instruction is None for instruction in instructions], device=text.device)
        text[absent] = self.gpt.cls_embedding.uncond_embedding[: text.shape[1]].to(text)
        if absent.all():  # both guidance branches would be the same
            settings = replace(settings, cfg_scale=1.0)
        seeds = SampleSeeds(settings.seed, ids)
        codes = self.engine.generate(source_codes, text, settings, seeds, drop_image, known_codes, samples, progress)
        self.stats = self.stats + self.engine.stats
        return codes

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, N) -> pictures (B, 3, S, S), not clamped."""
        return torch.cat([self.tokenizer.decode(part) for part in codes.split(AT_ONCE)])

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures (B, S, S, 3) uint8 -> codes (B, N) int64 on the pipeline's device."""
        parts = batch_to_tensor(pictures).split(AT_ONCE)
        return torch.cat([self.tokenizer.encode(part.to(self.device)) for part in parts])

    def reconstruct(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Pictures through the tokenizer alone: the ceiling of what the model can draw."""
        return [to_uint8(self.decode(self.encode(image[None])))[0] for image in images]
