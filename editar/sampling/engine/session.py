"""The buffers of one generation and the pass that moves it on: read some codes of each row, choose what follows."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from editar.config import SamplingConfig
from editar.sampling.decode import draw_tokens, filter_logits, guidance_scales, guide
from editar.sampling.engine.blocks import BlockStep, FastBlock, FastGPT
from editar.sampling.engine.cache import BatchLayout, SharedCache


class Session:
    """Everything one shape of generation needs, allocated once: cache, codes, random numbers.

    codes     (B, N) int64, B = images * samples: accepted up to `position`, known or guessed after it
    known     (B, N) bool, True where the code is given
    position  (B,) int64, the newest accepted code of each result, -1 before the first
    uniform   (B, N) float64, one number per code, fixed before the first pass

    Guidance and temperature are tensors that `set_sampling` fills, so that other values need nothing
    prepared again.
    """

    def __init__(self, fast: FastGPT, layout: BatchLayout, cfg: SamplingConfig) -> None:
        self.fast, self.layout, self.cfg = fast, layout, cfg
        length, device = fast.cfg.image_tokens, fast.device
        shape = (layout.images * layout.samples, length)
        self.cache = SharedCache(fast.cfg, layout, fast.zero_text, device, fast.dtype)
        self.codes = torch.zeros(shape, dtype=torch.long, device=device)
        self.known = torch.zeros(shape, dtype=torch.bool, device=device)
        self.position = torch.zeros(shape[0], dtype=torch.long, device=device)
        self.uniform = torch.zeros(shape, dtype=torch.float64, device=device)
        self.scale = torch.empty(length, device=device)
        self.temperature = torch.empty((), device=device)

    def fits(self, layout: BatchLayout, cfg: SamplingConfig) -> bool:
        """Whether these buffers and prepared steps serve that shape and those settings."""
        mine, theirs = ((c.greedy, c.top_k, c.top_p, c.window) for c in (self.cfg, cfg))
        return self.layout == layout and mine == theirs

    def set_sampling(self, cfg: SamplingConfig) -> None:
        self.scale.copy_(guidance_scales(cfg, len(self.scale)))
        self.temperature.fill_(max(cfg.temperature, 1e-5))

    def begin(self, draft: torch.Tensor, known_codes: torch.Tensor | None, uniform: torch.Tensor | None) -> None:
        """Start anew from a draft (I, N) and known codes (I, N), -1 where a code is to be chosen; uniform (N, B)."""
        known = torch.zeros_like(draft, dtype=torch.bool) if known_codes is None else known_codes >= 0
        codes = draft if known_codes is None else torch.where(known, known_codes, draft)
        self.known.copy_(known.repeat_interleave(self.layout.samples, dim=0))
        self.codes.copy_(codes.repeat_interleave(self.layout.samples, dim=0))
        if uniform is not None:
            self.uniform.copy_(uniform.T)
        self.position.fill_(-1)

    def prefill(self, source: torch.Tensor, text: torch.Tensor, drop_image: torch.Tensor | None) -> None:
        """Read the prefix and choose code 0 of every result."""
        logits = self.fast.prefill(source, text, self.layout, self.cache, drop_image)
        logits = logits.repeat_interleave(self.layout.samples, dim=0)[:, None]
        self.sample_next(logits, torch.zeros_like(self.position)[:, None])

    def step(self, width: int, drawn: int, length: int, masked: bool, block_step: BlockStep = FastBlock.step) -> None:
        """One pass: read `width` codes of each result from `position` on, choose the `drawn` codes after the last.

        Codes between are known. Near the end of the image, codes that were accepted before are read again.
        `length`, `masked` and `block_step` as in `FastGPT.step`.
        """
        first = self.position.clamp(max=self.codes.shape[1] - 1 - width)
        read = first[:, None] + torch.arange(width, device=first.device)  # (B, width)
        codes, positions = self.rows(self.codes.gather(1, read)), self.rows(read)
        logits = self.fast.step(codes, positions, drawn, length, masked, self.layout, self.cache, block_step)
        self.sample_next(logits, read[:, width - drawn :] + 1)

    def sample_next(self, logits: torch.Tensor, positions: torch.Tensor) -> None:
        """Choose the codes at `positions` (B, W) from logits (R, W, V), accept as far as the guess was right.

        Each draw supposes that the codes before it are right. It is exact up to the first that differs from the
        guess, and including it; the other draws become the next guess.
        """
        branches = logits.view(self.layout.images, self.layout.branches, self.layout.samples, *logits.shape[1:])
        mixed = branches[:, 0].flatten(0, 1)  # (B, W, V)
        if self.layout.branches == 2:
            mixed = guide(mixed, branches[:, 1].flatten(0, 1), self.scale[positions][:, :, None])
        guess = self.codes.gather(1, positions)
        fixed = self.known.gather(1, positions) | (positions <= self.position[:, None])
        codes = torch.where(fixed, guess, self._draw(mixed, positions))
        agreed = (codes == guess)[:, :-1].cumprod(1).sum(1)
        self.codes.scatter_(1, positions, codes)
        self.position.copy_(positions[:, 0] + agreed)

    def _draw(self, logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Guided logits (B, W, V) -> codes (B, W)."""
        if self.cfg.greedy:
            return logits.argmax(-1)
        kept = filter_logits(logits.flatten(0, 1) / self.temperature, self.cfg.top_k, self.cfg.top_p)
        return draw_tokens(kept.softmax(-1), self.uniform.gather(1, positions).flatten()).view(positions.shape)

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """x (B, W) -> of each row, (R, W): both guidance branches read the same codes."""
        layout = self.layout
        x = x.view(layout.images, 1, layout.samples, -1).expand(-1, layout.branches, -1, -1)
        return x.reshape(layout.rows, -1)

    def keep(self, results: torch.Tensor) -> Session:
        """A copy that goes on with some of the results; needs one image or one sample of each."""
        kept = copy.copy(self)
        name = "samples" if self.layout.images == 1 else "images"
        kept.layout = replace(self.layout, **{name: len(results)})
        kept.cache = self.cache.keep(results, self.layout)
        for field in ("codes", "known", "position", "uniform"):
            setattr(kept, field, getattr(self, field).index_select(0, results))
        return kept
