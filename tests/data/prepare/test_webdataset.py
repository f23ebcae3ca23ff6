"""Tars of pairs: what is kept, what a missing member or a cut does, and that training reads the result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from editar.config import DataConfig, SourceConfig
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.sources import Source
from editar.data.tables import open_table
from editar.errors import DataError
from tests.helpers import miniature


def request(origin: Path, folder: Path, **more: object) -> Request:
    return Request("webdataset", str(origin), folder, rows_per_shard=5, workers=1, **more)  # type: ignore[arg-type]


def test_pairs_are_kept_and_incomplete_ones_are_named(tmp_path: Path) -> None:
    raw = miniature.write_webdataset(tmp_path / "raw", 14, corrupt=(2,), empty=(5,), lacking={3: "tgt", 9: "txt"})
    manifest = prepare(request(raw, tmp_path / "out"))
    assert manifest["dropped"] == {"corrupt image": 1, "missing member": 2, "no text": 1}
    rows = list(open_table(tmp_path / "out"))
    assert [row["key"][-6:] for row in rows] == [f"{i:06d}" for i in range(14) if i not in (2, 3, 5, 9)]
    plan = miniature._plan("recolour", 0)
    assert rows[0]["instruction"] == plan.instruction
    before, after = miniature._pair(plan, 0, 64, 96)
    assert rows[0]["source"]["bytes"] == miniature.encode(before, "JPEG")
    assert rows[0]["target"]["bytes"] == miniature.encode(after)
    dropped = [json.loads(line) for line in (tmp_path / "out/dropped.jsonl").read_text().splitlines()]
    lost = {row["detail"] for row in dropped if row["reason"] == "missing member"}
    assert lost == {"./0/000003 has no target", "./1/000009 has no instruction"}


def test_damaged_and_foreign_tars_are_named(tmp_path: Path) -> None:
    raw = miniature.write_webdataset(tmp_path / "raw", 6)
    tar = raw / "pairs-000001.tar"
    tar.write_bytes(tar.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"pairs-000001\.tar: damaged or cut short"):
        prepare(request(raw, tmp_path / "out"))
    miniature.write_webdataset(tmp_path / "half", 6, lacking=dict.fromkeys(range(6), "tgt"))
    with pytest.raises(DataError, match=r"no member for target; found key, source, instruction: is this webdataset\?"):
        prepare(request(tmp_path / "half", tmp_path / "other"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.tar in it"):
        prepare(request(tmp_path / "empty", tmp_path / "third"))


def test_limit_and_files(tmp_path: Path) -> None:
    raw = miniature.write_webdataset(tmp_path / "raw", 8)
    assert prepare(request(raw, tmp_path / "a", limit=3))["rows"] == 3
    assert prepare(request(raw, tmp_path / "b", files="1:2"))["rows"] == 4


@pytest.mark.parametrize("kind", ["magicbrush", "ultraedit", "omniedit", "webdataset"])
def test_training_reads_them(kind: str, tmp_path: Path) -> None:
    getattr(miniature, f"write_{kind}")(tmp_path / "raw", 6)
    split = "FreeForm" if kind == "ultraedit" else "train"
    prepare(Request(kind, str(tmp_path / "raw"), tmp_path / "out", split, workers=1))
    cfg = SourceConfig(kind=kind, path=str(tmp_path / "out"))
    source = Source(kind, cfg, DataConfig(heldout_samples=2, sources={kind: cfg}))
    assert (len(source), source.heldout) == (5, 1)
    pair = source.pair(2)
    instruction = miniature._plan("recolour", 2).instruction
    wanted = [instruction, f"please {instruction}", f"{instruction} now"][: 3 if kind == "omniedit" else 1]
    assert list(pair.texts.instructions) == wanted
    assert pair.source is not None and pair.source.size == pair.target.size
    assert pair.texts.choose(0.0, 0.99)[1] == wanted[-1]
