"""The loader: neither workers, world size nor restarts change the stream; bad rows are replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from editar.config import DataConfig, SourceConfig
from editar.data import stream
from editar.data.loader import (
    DIRECTION,
    BadRows,
    DrawBatchSampler,
    HeldoutRows,
    Item,
    Reader,
    TrainStream,
    batches,
    collate,
)
from editar.data.mixture import Mixture
from editar.data.sources import open_sources
from editar.errors import DataError
from tests.helpers import miniature

GLOBAL_BATCH, STEPS = 6, 8


@pytest.fixture(scope="module")
def readers(five_sources: dict[str, Path]) -> list[Reader]:
    shares = (("pipe", 25, 0.5), ("multigen_canny", 15, 0.0), ("seed_unsplash", 30, 0.0))
    kinds = {
        name: SourceConfig(name, weight=weight, path=str(five_sources[name]), backward=backward)
        for name, weight, backward in shares
    }
    sources = open_sources(DataConfig(sources=kinds, heldout_samples=6))
    return [Reader(source, None, 32) for source in sources.values()]


def training(readers: list[Reader], seed: int = 0) -> TrainStream:
    weights = {reader.source.name: reader.source.cfg.weight for reader in readers}
    return TrainStream(readers, Mixture(weights, {r.source.name: len(r.source) for r in readers}, seed), seed)


def seen(
    rows: TrainStream, size: int, workers: int, micro_batch: int, start: int = 0
) -> dict[int, tuple[str, str, int]]:
    """draw -> (row, instruction, a sum over the pictures), over all ranks of a world of `size`."""
    found = {}
    for rank in range(size):
        draws = DrawBatchSampler(start, STEPS, rank, size, GLOBAL_BATCH, micro_batch)
        for batch in batches(rows, draws, workers, torch.device("cpu")):
            for k, draw in enumerate(batch.draws.tolist()):
                picture = int(batch.source[k].sum()) * 3 + int(batch.target[k].sum())
                found[draw] = (batch.ids[k], batch.instructions[k], picture)
    return found


@pytest.mark.parametrize(("size", "workers", "micro_batch"), [(1, 2, 6), (2, 0, 3), (2, 5, 1), (3, 2, 2)])
def test_the_stream_does_not_depend_on_who_reads_it(
    readers: list[Reader], size: int, workers: int, micro_batch: int
) -> None:
    rows = training(readers)
    expected = seen(rows, 1, 0, 6)
    assert list(expected) == list(range(GLOBAL_BATCH * STEPS))
    assert seen(rows, size, workers, micro_batch) == expected


def test_a_restart_in_the_middle_sees_the_rest(readers: list[Reader]) -> None:
    rows = training(readers)
    whole = seen(rows, 1, 0, 6)
    rest = seen(rows, 2, 2, 3, start=3)
    assert rest == {draw: value for draw, value in whole.items() if draw >= 3 * GLOBAL_BATCH}


def test_another_seed_gives_another_stream(readers: list[Reader]) -> None:
    assert seen(training(readers), 1, 0, 6) != seen(training(readers, seed=1), 1, 0, 6)


def test_pairs_are_reversed_as_the_draw_says(readers: list[Reader]) -> None:
    draws = np.arange(200, dtype=np.uint64)
    chance = stream.uniform(draws, 0, DIRECTION)
    rows = training(readers)
    source, row = rows.mixture.locate(draws)
    items = dict(rows.__getitems__(draws.tolist()))
    reversed_draws = 0
    for draw in np.flatnonzero(source == 0).tolist():
        texts = readers[0].source.pair(int(row[draw])).texts
        expected = chance[draw] < 0.5 and len(texts.reversed_instructions) > 0
        assert items[draw].instruction.startswith("Remove ") == expected
        assert items[draw].instruction in (texts.reversed_instructions if expected else texts.instructions)
        reversed_draws += expected
    assert reversed_draws > 5


def test_held_out_rows_are_never_trained_on(readers: list[Reader]) -> None:
    trained = {item.id for _, item in training(readers).__getitems__(list(range(600)))}
    rows = HeldoutRows(readers)
    heldout = {item.id for _, item in rows.__getitems__(list(range(len(rows))))}
    assert len(heldout) == 6
    assert not trained & heldout
    assert len(trained) == sum(len(reader.source) for reader in readers)


def test_bad_rows_are_replaced_and_reported(tmp_path: Path) -> None:
    folder = miniature.write_pipe(tmp_path / "pipe", 20, corrupt=(3, 4), empty=(7,))
    source = open_sources(DataConfig(sources={"pipe": SourceConfig("pipe", path=str(folder))}, heldout_samples=2))
    rows = training([Reader(source["pipe"], None, 32)])
    batch = collate(rows.__getitems__(list(range(18))))
    assert {name for name, _ in batch.replaced} == {"pipe/3", "pipe/4", "pipe/7"}
    assert not {"pipe/3", "pipe/4", "pipe/7"} & set(batch.ids)
    again = collate(rows.__getitems__(list(range(9, 18))))
    assert again.ids == batch.ids[9:]


def test_too_many_bad_rows_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    good = Item("t", "good", "x", picture, picture)
    bad_rows = BadRows(0.01)
    for draw in range(1000):
        bad_rows.check(collate([(draw, good)]))
    bad = replace(good, replaced=(("pipe/7", "torn"),))
    for draw in range(1000, 1010):
        bad_rows.check(collate([(draw, bad)]))
    with pytest.raises(DataError, match=r"11 bad rows in the first 1011 draws, more than data.max_bad_share=0.01"):
        bad_rows.check(collate([(1010, bad)]))
    assert capsys.readouterr().err.count("pipe/7") == 1


def test_a_source_of_nothing_but_bad_rows_is_named(tmp_path: Path) -> None:
    folder = miniature.write_pipe(tmp_path / "pipe", 6, corrupt=range(6))
    source = open_sources(DataConfig(sources={"pipe": SourceConfig("pipe", path=str(folder))}, heldout_samples=1))
    with pytest.raises(DataError, match="pipe: 50 bad rows one after the other"):
        training([Reader(source["pipe"], None, 32)]).__getitems__([0])
