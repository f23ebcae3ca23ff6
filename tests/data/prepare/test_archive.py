"""The cut tar.gz of SEED-Unsplash as one stream."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from editar.data.prepare.archive import TruncatedArchive, archive_members, find_parts
from editar.errors import DataError
from tests.helpers import miniature


def test_missing_parts_are_named(tmp_path: Path) -> None:
    for names, message in (
        (["00", "01", "03"], "part-02 is missing"),
        (["01", "02", "04"], "part-03 is missing"),
        (["02", "03"], r"part-01 is missing \(1 of 3\)"),
        (["aa", "ab", "ba"], r"part-ac is missing \(24 of 27\)"),
        (["ab"], "part-aa is missing"),
    ):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        for name in names:
            (tmp_path / f"images.tar.gz.part-{name}").write_bytes(b"")
        with pytest.raises(DataError, match=message):
            find_parts(tmp_path)
    (tmp_path / "images.tar.gz.part-ab").rename(tmp_path / "images.tar.gz")
    assert find_parts(tmp_path) == [tmp_path / "images.tar.gz"]


def test_a_cut_at_any_byte_is_noticed(tmp_path: Path) -> None:
    raw = miniature.write_seed(tmp_path / "raw", 4, part_bytes=10**9)
    (part,) = find_parts(raw)
    whole = part.read_bytes()
    assert len(read_all(part)) > 6
    for length in [*range(0, len(whole), 61), *range(len(whole) - 12, len(whole))]:
        part.write_bytes(whole[:length])
        with pytest.raises(TruncatedArchive, match="breaks off"):
            read_all(part)


def read_all(part: Path) -> list[bytes]:
    return [member.read() for member in archive_members([part], lambda _: None)]
