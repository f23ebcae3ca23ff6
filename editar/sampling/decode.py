"""From a prefix to target codes: guidance, filtering, drawing.

`generate` is the plain loop, one code after the other; `generate_parallel` guesses and checks a window of
codes per pass and returns the same codes. Both are written to be read, and `engine` is tested against them.
Rules from EditAR generate_edit.py: guidance only where cfg_scale > 1; both halves keep the source image, only
the second half's text is the null table; combined = uncond + (cond - uncond) * scale, before temperature,
top-k and top-p, in that order.
"""

from __future__ import annotations

import hashlib

import torch

from editar.config import SamplingConfig
from editar.models.gpt import GPT, KVCache


def guide(cond: torch.Tensor, uncond: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    """Classifier-free guidance on logits (paper eq. 5)."""
    return uncond + (cond - uncond) * scale


def filter_logits(logits: torch.Tensor, top_k: int, top_p: float, min_keep: int = 1) -> torch.Tensor:
    """Set what may not be drawn to -inf; logits (B, V), a new tensor is returned.

    Top-k keeps everything >= the k-th value (ties can keep more), k is clamped to V, 0 = off.
    Top-p, after top-k, keeps the smallest set whose probability exceeds p with the token that
    crosses it, at least one; 1 = off. With min_keep m > 1 top-k keeps at least m, and top-p m + 1:
    a slip of the official filter, kept.
    """
    if top_k > 0:
        best = logits.topk(min(max(top_k, min_keep), logits.shape[-1]), dim=-1, sorted=False).values
        kth = best.amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p < 1.0:
        ranked, order = logits.sort(dim=-1, descending=True)
        before = ranked.softmax(-1).cumsum(-1).roll(1, dims=-1)  # probability of all better tokens
        before[:, 0] = 0.0
        drop = before > top_p
        drop[:, : min_keep + 1 if min_keep > 1 else 1] = False
        logits = logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    return logits


def guidance_scales(cfg: SamplingConfig, length: int) -> torch.Tensor:
    """(length,) float32: the guidance scale of every target position.

    With cfg_interval c >= 0 guidance acts on target codes 0..c+1, afterwards the conditional logits are used
    alone (as the official loop counts).
    """
    scales = torch.full((length,), cfg.cfg_scale)
    if cfg.cfg_interval >= 0:
        scales[cfg.cfg_interval + 2 :] = 1.0
    return scales


def probabilities(logits: torch.Tensor, cfg: SamplingConfig) -> torch.Tensor:
    """Guided logits (B, V) -> what is drawn from, (B, V) float32."""
    return filter_logits(logits / max(cfg.temperature, 1e-5), cfg.top_k, cfg.top_p).softmax(-1)


class SampleSeeds:
    """One random stream per sample, from (run seed, sample id, draw number).

    A sample's numbers do not depend on who shares its batch, on the order or on other processes.
    """

    def __init__(self, seed: int, ids: list[str], draw: int = 0) -> None:
        self.generators = []
        for sample_id in ids:
            digest = hashlib.sha256(f"{seed}/{sample_id}/{draw}".encode()).digest()
            self.generators.append(torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1))

    def uniform(self, length: int) -> torch.Tensor:
        """(length, B) float64 in [0, 1): one number per token and sample."""
        return torch.stack([torch.rand(length, generator=g, dtype=torch.float64) for g in self.generators], dim=1)


def draw_tokens(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-CDF draw: probs (B, V), uniform (B,) in [0, 1) -> (B,) int64."""
    cumulative = probs.double().cumsum(-1)
    threshold = uniform.to(cumulative)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp(max=probs.shape[-1] - 1)


def choose(logits: torch.Tensor, cfg: SamplingConfig, uniform: torch.Tensor | None) -> torch.Tensor:
    """Guided logits (B, V) and a uniform number each (B,), None for greedy -> codes (B,) int64."""
    probs = probabilities(logits, cfg)
    return probs.argmax(-1) if uniform is None else draw_tokens(probs, uniform)


@torch.no_grad()
def generate(
    model: GPT,
    source_codes: torch.Tensor,
    text: torch.Tensor,
    cfg: SamplingConfig,
    seeds: SampleSeeds | None = None,
    drop_image: torch.Tensor | None = None,
    known_codes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Source codes (B, K N) and text (B, L, C) -> target codes (B, N) int64.

    `known_codes` (B, N) int64 holds target codes that are given, -1 where one is to be chosen. `seeds` is
    needed unless cfg.greedy.
    """
    batch, length = len(source_codes), model.cfg.image_tokens
    guided = cfg.cfg_scale > 1
    rows = 2 * batch if guided else batch
    drop_text = None
    if guided:
        source_codes, text = torch.cat([source_codes] * 2), torch.cat([text] * 2)
        drop_text = torch.arange(rows, device=text.device) >= batch
        drop_image = None if drop_image is None else torch.cat([drop_image] * 2)
    cache = KVCache(model.cfg, rows, source_codes.device, model.tok_embeddings.weight.dtype)
    uniform = uniform_numbers(cfg, seeds, source_codes[:, :length])
    scales = guidance_scales(cfg, length)

    codes: list[torch.Tensor] = []
    logits = model.prefill(source_codes, text, cache, drop_image, drop_text)  # (rows, V)
    for position in range(length):
        if position > 0:
            last = torch.cat([codes[-1]] * 2) if guided else codes[-1]
            logits = model.decode(last, position - 1, cache)  # (rows, V)
        mixed = guide(logits[:batch], logits[batch:], float(scales[position])) if guided else logits
        token = choose(mixed, cfg, None if uniform is None else uniform[position])
        if known_codes is not None:
            token = torch.where(known_codes[:, position] >= 0, known_codes[:, position], token)
        codes.append(token)
    return torch.stack(codes, dim=1)


@torch.no_grad()
def generate_parallel(
    model: GPT,
    source_codes: torch.Tensor,
    text: torch.Tensor,
    cfg: SamplingConfig,
    window: int,
    seeds: SampleSeeds | None = None,
    drop_image: torch.Tensor | None = None,
    known_codes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of `generate`, (B, N) int64, and the forward passes each sample took, (B,) int64.

    The guess starts as the first source's codes. A pass draws every code given the guessed codes before it, with the
    position's own uniform number. Up to the first draw that differs from its guess, and including it, the codes
    before each draw were right, so the draw is the plain loop's: these are accepted. The other draws
    of the window become the next guess. The first pass accepts code 0 alone, as a prefill does.
    """
    batch, length = len(source_codes), model.cfg.image_tokens
    first = source_codes[:, :length]
    known = torch.zeros_like(first, dtype=torch.bool) if known_codes is None else known_codes >= 0
    guess = first.clone() if known_codes is None else torch.where(known, known_codes, first)
    uniform, scales = uniform_numbers(cfg, seeds, first), guidance_scales(cfg, length)
    accepted, passes = [0] * batch, torch.zeros(batch, dtype=torch.long)
    drop_text = torch.ones(batch, dtype=torch.bool, device=text.device)
    while min(accepted) < length:
        logits = model.output(model.hidden(source_codes, text, guess, drop_image)).float()  # (B, N, V)
        if cfg.cfg_scale > 1:
            without = model.output(model.hidden(source_codes, text, guess, drop_image, drop_text)).float()
            logits = guide(logits, without, scales.to(logits.device)[:, None])
        numbers = None if uniform is None else uniform.T.flatten()
        drawn = choose(logits.flatten(0, 1), cfg, numbers).view(batch, length)
        drawn = torch.where(known, guess, drawn)
        for sample in range(batch):
            start = accepted[sample]
            end = min(start + (window if start else 1), length)
            if start < end:
                same = (drawn[sample, start:end] == guess[sample, start:end]).cumprod(0).sum()
                guess[sample, start:end] = drawn[sample, start:end]
                accepted[sample] = min(start + int(same) + 1, end)
                passes[sample] += 1
    return guess, passes


def uniform_numbers(cfg: SamplingConfig, seeds: SampleSeeds | None, like: torch.Tensor) -> torch.Tensor | None:
    """The uniform number of every position and sample, (N, B) float64, None for greedy; `like` is (B, N).

    Raises ValueError where they are needed and `seeds` is None.
    """
    if cfg.greedy:
        return None
    if seeds is None:
        raise ValueError("generate needs seeds unless cfg.greedy is set")
    return seeds.uniform(like.shape[1]).to(like.device)
