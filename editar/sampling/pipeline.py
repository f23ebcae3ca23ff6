"""Image + instruction -> image.

pipeline = EditPipeline.from_pretrained("reference/nano")
images = pipeline(image, "make the red circle blue", cfg_scale=1.5, seed=0, num_samples=4)
images = pipeline([one, other], ["make the red circle blue", "remove the star"])  # one result each
images = pipeline(image, "make the red circle blue", mask="mask.png")  # the rest keeps the source's codes
images = pipeline(None, "a red circle")  # from text alone; pipeline(image) and pipeline() drop the text
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin
from PIL import Image

from editar.config import FITS, SamplingConfig, TrainConfig, check_choice, override, to_yaml
from editar.errors import CheckpointError, ConfigError
from editar.images import batch_to_tensor, resize_and_crop, to_tensor, to_uint8
from editar.models.gpt import GPT
from editar.models.text import TextEncoder
from editar.models.vq import VQModel
from editar.runtime.device import pick_device, pick_dtype
from editar.runtime.files import write_text
from editar.sampling.batching import automatic_batch, in_batches
from editar.sampling.decode import SampleSeeds
from editar.sampling.engine import Engine, Progress
from editar.sampling.fit import Fitted, Picture, fit_picture, read_picture
from editar.sampling.masks import known_codes_outside
from editar.sampling.stats import GenerationStats
from editar.weights.adapter import FILES, open_run
from editar.weights.load import SETTINGS, model_settings, save_pair

AT_ONCE = 8  # pictures in the tokenizer, whose activations are large
OUTPUTS: dict[str, Callable[[Image.Image], Any]] = {"pil": lambda image: image, "np": np.asarray, "pt": to_tensor}


class EditPipeline(
    ModelHubMixin,
    library_name="editar",
    pipeline_tag="image-to-image",
    tags=["image-editing", "autoregressive"],
    model_card_template=Path(__file__).with_name("model_card.md.j2").read_text(encoding="utf-8"),
):
    """Tokenizer, text encoder and GPT of one run, ready to edit. `stats` tells what sampling cost so far.

    `save_pretrained(folder)` and `push_to_hub("owner/name")` are huggingface_hub's; `model_card_kwargs={"results":
    TEXT}` goes into the model card.
    """

    def __init__(self, cfg: TrainConfig, gpt: GPT, tokenizer: VQModel, text: TextEncoder, **engine: Any) -> None:
        self._hub_mixin_config = None  # no config.json: config.yaml holds everything
        self.cfg, self.gpt, self.tokenizer, self.text = cfg, gpt, tokenizer, text
        self.engine = Engine(gpt, **engine)
        self.stats = GenerationStats()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        sampling: dict[str, Any] | None = None,
        compile: bool | None = None,
        int8: bool = False,
        dtype: str = "auto",
        text_name: str | None = None,
        revision: str | None = None,
        lora: str | Path | None = None,
    ) -> EditPipeline:
        """Load a run folder: config.yaml, model.safetensors, tokenizer.safetensors; or such a repository of the hub.

        `sampling` overrides the run's own sampling settings; `compile` (None: on a
        GPU) and `int8` are the engine's. `dtype` is the GPT's: `float32`, `bfloat16`, or `auto`, bfloat16 on
        a GPU as officially; the tokenizer stays float32. `text_name` is where the text encoder lies here
        (hub id or folder), if not where config.yaml says. `revision` is the hub's. `lora` is the folder or hub id of an
        adapter trained on these weights.
        """
        cfg, gpt, tokenizer = open_run(path, revision, lora)
        cfg.sampling = override(cfg.sampling, sampling or {}, "sampling")
        if int8 and dtype == "bfloat16":
            raise ConfigError("int8=true needs a float32 model on a CPU; leave dtype=bfloat16 out")
        cfg.text.name = text_name or cfg.text.name
        place = pick_device(device) if isinstance(device, str) else device
        for module in (gpt, tokenizer):
            module.to(place).eval().requires_grad_(False)
        gpt.to(pick_dtype("bfloat16" if dtype == "auto" else dtype, place))
        return cls(cfg, gpt, tokenizer, TextEncoder(cfg.text, place), compile=compile, int8=int8)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_text(save_directory / FILES[0], to_yaml(self.cfg))
        header = {SETTINGS: model_settings(self.cfg)}
        save_pair(save_directory, self.gpt.state_dict(), self.tokenizer.state_dict(), header)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        size = sum(parameter.numel() for parameter in self.gpt.parameters())
        return super().generate_model_card(*args, cfg=self.cfg, parameters=size, **kwargs)

    def to(self, device: str | torch.device) -> EditPipeline:
        """Move all parts to a device; the types of their numbers stay."""
        self.engine.release()
        for module in (self.gpt, self.tokenizer, self.text.model):
            module.to(device)
        self.text.device = self.device
        return self

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
        image: Picture | Sequence[Picture | None] | None = None,
        instruction: str | Sequence[str | None] | None = None,
        cfg_scale: float | None = None,
        seed: int | None = None,
        num_samples: int = 1,
        mask: Picture | Sequence[Picture | None] | None = None,
        mask_dilate: int = 1,
        references: Sequence[Picture] = (),
        fit: str = "restore",
        region: Sequence[int] | None = None,
        output_type: str = "pil",
        generator: torch.Generator | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Any]:
        """Edit a picture (file, PIL or array) or several -> `num_samples` RGB pictures of each, picture by picture.

        Of image and instruction either may be a list, the other one then serves all of it. A picture in a list gets
        the random numbers, and so the result, that it gets alone.

        None drops a condition, as in training: without image the text alone decides (text-to-image), without
        instruction the image alone, without both nothing (unconditional). Guidance acts on the text only. `mask`,
        of the picture's own size, is white where the edit may change something, grown by `mask_dilate` codes;
        elsewhere the source's codes stay. `references` are the second and further pictures for a model that was
        trained with `data.images` of them; of each the middle square is read.

        The model edits a square of its own size. `fit="restore"` puts that back into the picture, whose other pixels
        stay as they are; `fit="square"` returns the square: give it where the picture is a condition and the result
        another picture. `region` (x, y, side) chooses the square (`fit_picture` has the rule without it).

        `output_type`: `pil`, `np` (H, W, 3) uint8 or `pt` (3, H, W) float32 in [-1, 1]. `generator` draws the seed.
        `progress` is called after every pass with the number of codes it accepted, in all N for each result; an
        error that it raises ends the call.
        """
        check_choice("fit", fit, FITS)
        check_choice("output_type", output_type, tuple(OUTPUTS))
        if num_samples < 1:
            raise ConfigError(f"num_samples={num_samples} must be at least 1")
        if generator is not None:
            seed = int(torch.randint(2**32, (), generator=generator, device=generator.device))
        changes = sampling | {k: v for k, v in (("cfg_scale", cfg_scale), ("seed", seed)) if v is not None}
        settings = override(self.cfg.sampling, changes, "sampling")
        images, instructions, masks = same_length(image=image, instruction=instruction, mask=mask)
        if any(one is None and other is not None for one, other in zip(images, masks, strict=True)):
            raise ConfigError("a mask needs an image, whose codes stay outside of it")
        size = self.cfg.image_size
        more = [np.asarray(resize_and_crop(read_picture(one), size)) for one in references]
        if more and any(one is None for one in images):
            raise ConfigError("references need an image, which is what is edited")
        fitted = [
            None if one is None else fit_picture(read_picture(one), size, fit, region, other)
            for one, other in zip(images, masks, strict=True)
        ]
        made = self._batches(
            [None if one is None else np.stack([one.source, *more]) for one in fitted],
            instructions,
            [f"sample-{draw}" for _ in fitted for draw in range(num_samples)],
            settings,
            None if mask is None else [mask_of(one, size) for one in fitted],
            mask_dilate,
            num_samples,
            progress,
        )
        edits = [(edit, code) for batch, changed in made for edit, code in zip(to_uint8(batch), changed, strict=True)]
        results = [
            Image.fromarray(edit) if (one := fitted[i // num_samples]) is None else one.result(edit, changed)
            for i, (edit, changed) in enumerate(edits)
        ]
        return [OUTPUTS[output_type](result) for result in results]

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

        A source of several pictures is (k, S, S, 3): the first is edited, k is at most the model's number of images.
        `ids`, one per result, choose its random stream. None among `sources` and `instructions`, `masks` (S, S)
        bool and `progress` as in a call. `finish` makes of a batch (B, 3, S, S), not clamped, what is returned one
        by one: (S, S, 3) uint8 by default.
        """
        settings = sampling or self.cfg.sampling
        made = self._batches(sources, instructions, ids, settings, masks, mask_dilate, samples, progress)
        return [result for batch, _ in made for result in finish(batch)]

    def _batches(
        self,
        sources: Sequence[np.ndarray | None],
        instructions: Sequence[str | None],
        ids: list[str],
        settings: SamplingConfig,
        masks: list[np.ndarray] | None,
        mask_dilate: int,
        samples: int,
        progress: Progress | None,
    ) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
        """`edit_arrays` batch by batch: pictures (B, 3, S, S), not clamped, and (B, g, g) bool, True where a code
        differs from the source's."""
        size = self.cfg.image_size
        if wrong := [source.shape for source in sources if source is not None and source.shape[-3:] != (size, size, 3)]:
            raise ConfigError(f"pictures must be {size}x{size}x3, found {wrong[0]}")
        each = self.cfg.gpt.images
        given = [np.zeros((0, size, size, 3), np.uint8) if s is None else s.reshape(-1, size, size, 3) for s in sources]
        if too_many := [len(source) for source in given if len(source) > each]:
            raise ConfigError(f"{too_many[0]} pictures for one edit, the model reads {each} (its data.images)")
        if len(ids) != samples * len(sources):
            raise ConfigError(f"{len(sources)} pictures of {samples} samples need as many ids, found {len(ids)}")
        for id, instruction in zip(ids[::samples], instructions, strict=True):
            if instruction is not None and not instruction.strip():
                raise ConfigError(f"the instruction of {id} is empty; say what to change, or give None for no text")

        def edit(pictures: slice, draws: slice) -> tuple[torch.Tensor, np.ndarray]:
            found, dropped = self._encode_padded(given[pictures])
            first = found[:, : self.cfg.gpt.image_tokens]
            known_codes = None if masks is None else known_codes_outside(first, masks[pictures], mask_dilate)
            count = draws.stop - draws.start
            chosen = [id for i in range(len(sources))[pictures] for id in ids[i * samples :][draws]]
            texts = instructions[pictures]
            codes = self.edit_codes(found, texts, chosen, settings, known_codes, count, progress, dropped)
            changed = codes != first.repeat_interleave(count, dim=0)
            return self.decode(codes), changed.unflatten(1, (self.cfg.gpt.grid, -1)).cpu().numpy()

        most = self._batch_size(settings)
        if samples == 1:
            yield from in_batches(len(sources), most, lambda part: edit(part, slice(0, 1)), self._recover)
            return
        for i in range(len(sources)):
            yield from in_batches(samples, most, partial(edit, slice(i, i + 1)), self._recover)

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
        """Source codes (I, K N) int64 on the pipeline's device -> target codes (I * samples, N).

        `known_codes` (I, N) holds codes that are given, -1 elsewhere; `ids` has one entry per result. The null
        tables stand in for instructions that are None and for sources where `drop_image`, (I,) or (I, K) bool, is
        True.
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
        """Codes (B, N) -> pictures (B, 3, S, S), not clamped. Raises CheckpointError where a value is not finite."""
        pictures = torch.cat([self.tokenizer.decode(part) for part in codes.split(AT_ONCE)])
        if not torch.isfinite(pictures).all():  # waits for the GPU, as the copy of the pictures does next
            raise CheckpointError("the tokenizer draws pixels that are not finite; its weights are damaged")
        return pictures

    def _encode_padded(self, sources: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each source up to K pictures (k, S, S, 3) -> codes (B, K N), and (B, K) bool, True where there is none."""
        each, size = self.cfg.gpt.images, self.cfg.image_size
        padded = [np.concatenate([s, np.zeros((each - len(s), size, size, 3), np.uint8)]) for s in sources]
        there = torch.tensor([len(source) for source in sources], device=self.device)
        codes = self.encode(np.concatenate(padded)).view(len(sources), -1)
        return codes, torch.arange(each, device=self.device) >= there[:, None]

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> torch.Tensor:
        """Pictures (B, S, S, 3) uint8 -> codes (B, N) int64 on the pipeline's device."""
        parts = batch_to_tensor(pictures).split(AT_ONCE)
        return torch.cat([self.tokenizer.encode(part.to(self.device)) for part in parts])

    def reconstruct(self, images: list[np.ndarray]) -> list[np.ndarray]:
        """Pictures through the tokenizer alone: the ceiling of what the model can draw."""
        return [to_uint8(self.decode(self.encode(image[None])))[0] for image in images]


def same_length(**given: Any) -> list[list[Any]]:
    """Each value as a list; one that is not, or is None, is repeated as often as the lists have entries.

    Raises ConfigError for lists of different lengths and empty ones.
    """
    lengths = {name: len(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise ConfigError(f"lists must be of one length, not empty; found {lengths}")
    count = next(iter(lengths.values()), 1)
    return [list(value) if name in lengths else [value] * count for name, value in given.items()]


def mask_of(fitted: Fitted | None, size: int) -> np.ndarray:
    """(size, size) bool; True everywhere for a picture without mask."""
    return np.ones((size, size), bool) if fitted is None or fitted.mask is None else fitted.mask
