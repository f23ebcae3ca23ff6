"""Passes compiled and, on a GPU, captured as CUDA graphs; eager where that fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from editar.runtime.log import say
from editar.sampling.engine.blocks import FastBlock
from editar.sampling.engine.session import Session

BUCKETS = 4  # passes of width 1 are prepared for this many lengths of target positions
WIDTHS = (1, 8, 32)  # prepared where sampling.window=auto may choose
_said: set[str] = set()

Step = Callable[[], None]
Pool = Any  # of torch.cuda.graph_pool_handle, whose type has no public name


def prepare_all(session: Session, captured: bool = True) -> dict[tuple[int, int], Step]:
    """(codes read per row, target positions looked at) -> the pass, ascending; on a GPU `captured`."""
    length, window = session.codes.shape[1], session.cfg.window
    widths = WIDTHS if isinstance(window, str) else (window,)
    shapes = []
    for width in sorted({min(width, length - 1) for width in widths}):
        shapes += [(width, end) for end in (buckets(length) if width == 1 else [length])]
    # One memory for the intermediate results of all graphs: they run one after the other, and leave nothing there.
    pool = torch.cuda.graph_pool_handle() if session.position.is_cuda and captured else None
    return {shape: prepare_step(session, *shape, pool) for shape in shapes}


def buckets(length: int) -> list[int]:
    """How many target positions each pass of width 1 looks at, ascending; the last is all."""
    stretch = -(-length // BUCKETS)
    return [min(end, length) for end in range(stretch, length + stretch, stretch)]


def prepare_step(session: Session, width: int, length: int, pool: Pool | None) -> Step:
    """A pass that reads `width` codes of each row: its blocks compiled, captured into `pool` if there is one; eager
    where that fails."""
    step = partial(session.step, width, width, length, True)
    try:
        compiled = partial(step, torch.compile(FastBlock.step, dynamic=False))
        with torch._dynamo.config.patch(cache_size_limit=256):  # every width and bucket is a graph of its own
            warm_up(session, compiled)
        step = compiled
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may raise anything; sampling must go on
        say_once(f"sampling: torch.compile failed; going on without it, slower. Cause: {cause(error)}")
    if pool is None:
        return step
    try:
        return capture(session, step, pool)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        say_once(f"sampling: the CUDA graph capture failed; going on without it, slower. Cause: {cause(error)}")
    return step


def warm_up(session: Session, step: Step) -> None:
    """Run a pass from the first position; a generation overwrites what it leaves."""
    session.position.fill_(0)
    step()


def capture(session: Session, step: Step, pool: Pool) -> Step:
    """Record one pass as a CUDA graph (the session's tensors never move) -> its replay."""
    with torch.cuda.device(session.position.device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            warm_up(session, step)  # libraries allocate their workspaces on a stream's first use
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # data workers may go on meanwhile
            step()
    return graph.replay


def cause(error: Exception) -> str:
    """The whole message of an error, with its type; compilers explain themselves over several lines."""
    return f"{type(error).__name__}: {error}".strip()


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        say(text)
