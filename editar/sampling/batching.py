"""How many results fit at once, and what to do when it was too many."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from editar.config import GPTConfig
from editar.errors import out_of_memory
from editar.runtime.log import say

T = TypeVar("T")

SHARE = 0.7  # of the free memory; the rest is for the tokenizer's activations
WIDEST = 64  # codes read in a pass where sampling.window=auto chooses
MOST = {"cuda": 128, "cpu": 16}  # beyond, products are compute-bound and a batch gains nothing


def automatic_batch(cfg: GPTConfig, device: torch.device, dtype: torch.dtype, branches: int, held: int = 0) -> int:
    """Results per batch that fit in the free memory, at least 1; `held` bytes count as free too."""
    per_result = result_bytes(cfg, dtype.itemsize, branches)
    return max(1, min(MOST[device.type], int(SHARE * (free_memory(device) + held) / per_result)))


def result_bytes(cfg: GPTConfig, width: int, branches: int) -> int:
    """Memory of one result, from above: its cache, the prefix's activations and scores, a window's logits."""
    heads = cfg.n_kv_head or cfg.n_head
    cached = cfg.source_tokens + branches * (cfg.text_tokens + cfg.image_tokens)
    cache = 2 * cfg.n_layer * heads * cfg.head_dim * width * cached
    activations = width * max(cfg.source_tokens, branches * cfg.text_tokens) * (6 * cfg.dim + 3 * cfg.ffn_dim)
    scores = 10 * branches * cfg.n_head * cfg.text_tokens * cfg.prefix_tokens
    return cache + activations + scores + 32 * branches * cfg.vocab_size * min(WIDEST, cfg.image_tokens)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on `device`."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def in_batches(count: int, size: int, work: Callable[[slice], T], recover: Callable[[], None]) -> Iterator[T]:
    """work(slice) over 0..count - 1 in order, `size` at a time.

    When memory runs out `recover` is called and the size halved, for what is left; at 1 the error stands.
    """
    start = 0
    while start < count:
        try:
            result = work(slice(start, min(start + size, count)))
        except RuntimeError as error:
            if not out_of_memory(error) or size == 1:
                raise
            size = (min(size, count - start) + 1) // 2
            say(f"sampling: out of memory, going on with a batch of {size}")
        else:
            start += size
            yield result
            continue
        recover()  # outside `except`: the traceback would keep the tensors alive
