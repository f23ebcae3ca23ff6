"""Downloads to shards: what is kept, what is dropped, and the same bytes whatever happens on the way."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing as mp
import os
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from editar.data.prepare import archive
from editar.data.prepare.archive import find_parts
from editar.data.prepare.folder import only_one
from editar.data.prepare.parquet import LAYOUTS
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.tables import label_map, open_table, read_manifest
from editar.errors import DataError
from editar.runtime.files import checksum
from tests.helpers import miniature
from tests.helpers.tiny import ROOT

MAKERS = {
    "pipe": miniature.write_pipe,
    "multigen_depth": miniature.write_multigen_depth,
    "cocostuff": miniature.write_cocostuff,
    "magicbrush": miniature.write_magicbrush,
    "ultraedit": miniature.write_ultraedit,
    "omniedit": miniature.write_omniedit,
}
SPLITS = {"ultraedit": "FreeForm"}


def request(source: str, origin: Path, folder: Path) -> Request:
    split = SPLITS.get(source, "train")
    return Request(source, str(origin), folder, split, rows_per_shard=5, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def raw_rows(folder: Path) -> list[dict[str, object]]:
    return [row for file in sorted(folder.rglob("*.parquet")) for row in pq.read_table(file).to_pylist()]


# --- parquet sets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", list(MAKERS))
def test_kept_rows_are_unchanged_and_dropped_rows_counted(source: str, tmp_path: Path) -> None:
    MAKERS[source](tmp_path / "raw", 15, corrupt=(2,), empty=(4, 9))
    manifest = prepare(request(source, tmp_path / "raw", tmp_path / "out"))
    textless = source != "pipe"  # EditAR trains on PIPE's rows without text too
    assert manifest["dropped"] == {"corrupt image": 1} | ({"no text": 2} if textless else {})
    raw = [row for i, row in enumerate(raw_rows(tmp_path / "raw")) if i not in ((2, 4, 9) if textless else (2,))]
    table = open_table(tmp_path / "out")
    layout = LAYOUTS[source]
    assert table.columns == [*layout.needed, *layout.others]
    assert len(table) == manifest["rows"] == (12 if textless else 14)
    blank = {name: sum(not row[name] for row in table) for name in layout.texts}
    assert manifest["blank"] == {name: count for name, count in blank.items() if count}
    assert textless or blank["Instruction_VLM-LLM"] == 6
    for kept, original in zip(table, raw, strict=True):
        for name in table.columns:
            if name == layout.labels:
                assert np.array_equal(label_map(kept[name]), label_map(original[name]))
            else:
                assert kept[name] == original[name]
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    names = [
        f"data/{SPLITS.get(source, 'train')}-0000{n}-of-00002-0123456789abcdef.parquet#{row}"
        for n, row in ((0, 2), (0, 4), (1, 2))
    ]
    expected = list(zip(names, ["corrupt image", "no text", "no text"], strict=True))
    assert [(row["row"], row["reason"]) for row in dropped] == (expected if textless else expected[:1])
    for entry in manifest["files"]:
        file = tmp_path / "out" / entry["name"]
        assert (checksum(file), file.stat().st_size) == (entry["sha256"], entry["bytes"])
        assert entry["rows"] <= 5
    assert Image.open(tmp_path / "out" / "contact_sheet.png").size == (8 * 132 - 4, (3 if textless else 4) * 132 - 4)


def test_labels_that_do_not_fit_are_dropped(tmp_path: Path) -> None:
    miniature.write_cocostuff(tmp_path / "raw", 6, wrong_size=(1,), wrong_ids=(2, 5))
    manifest = prepare(request("cocostuff", tmp_path / "raw", tmp_path / "out"))
    assert manifest["dropped"] == {"unknown label ids": 2}  # another size is no reason: EditAR crops each by itself
    assert "[200]" in (tmp_path / "out" / "dropped.jsonl").read_text()


def test_bombs_empty_images_and_big_text_chunks(tmp_path: Path) -> None:
    folder = miniature.write_multigen_depth(tmp_path / "raw", 6, files=1, big_text=(0,))
    file = next(folder.rglob("*.parquet"))
    table = pq.read_table(file)
    rows = table.to_pylist()
    content = bytearray(rows[1]["image"]["bytes"])
    content[16:24] = struct.pack(">II", 60_000, 60_000)  # the header promises 3.6 gigapixels
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    rows[1]["image"]["bytes"] = bytes(content)
    rows[2]["control_depth"]["bytes"] = b""
    rows[3]["image"] = None
    rows[4]["image"]["bytes"] = b"<html>404</html>"
    rows[5]["image"]["bytes"] = miniature.encode(np.zeros((1, 1_000_000, 3), np.uint8))  # far too long when scaled
    pq.write_table(pa.Table.from_pylist(rows, table.schema), file)
    manifest = prepare(request("multigen_depth", tmp_path / "raw", tmp_path / "out"))
    assert manifest["dropped"] == {"corrupt image": 1, "empty image": 2, "image too large": 2}
    assert manifest["rows"] == 1


@pytest.mark.parametrize("struct", [False, True])
def test_a_text_is_never_opened_as_an_image(struct: bool, tmp_path: Path) -> None:
    """A column of paths, plain or in the struct's field, must not bring files of this machine into the shards."""
    private = tmp_path / "private.png"
    private.write_bytes(miniature.encode(np.full((64, 64, 3), 77, np.uint8)))
    folder = miniature.write_multigen_depth(tmp_path / "raw", 4, files=1)
    file = next(folder.rglob("*.parquet"))
    table = pq.read_table(file)
    texts = [{"bytes": str(private), "path": None} if struct else str(private)] * 4
    table = table.set_column(table.schema.get_field_index("image"), "image", pa.array(texts))
    pq.write_table(table, file)
    with pytest.raises(DataError, match="no row was kept"):
        prepare(request("multigen_depth", folder, tmp_path / "out"))
    assert read_manifest(tmp_path / "out")["dropped"] == {"no image bytes": 4}
    assert "image holds str instead of an image's bytes" in (tmp_path / "out" / "dropped.jsonl").read_text()


def test_a_folder_without_a_good_row_says_so(tmp_path: Path) -> None:
    miniature.write_cocostuff(tmp_path / "raw", 2, wrong_ids=(0, 1))
    reads = partial(open_table, tmp_path / "out")
    prepares = partial(prepare, request("cocostuff", tmp_path / "raw", tmp_path / "out"))
    for refused in (prepares, prepares, reads):  # the second time the folder is there
        with pytest.raises(DataError, match=r"no row was kept when it was prepared; see .*dropped\.jsonl"):
            refused()


def test_limit_and_files_take_a_part(tmp_path: Path) -> None:
    raw = miniature.write_pipe(tmp_path / "raw", 12, files=4)
    asked = request("pipe", raw, tmp_path / "limited")
    prepare(replace(asked, limit=7))
    assert [row["img_id"] for row in open_table(tmp_path / "limited")] == [str(1000 + i) for i in range(7)]
    prepare(replace(asked, folder=tmp_path / "some", files="1:3", limit=5))
    assert [row["img_id"] for row in open_table(tmp_path / "some")] == [str(1003 + i) for i in range(5)]
    for changes, message in (
        ({"files": "8:9"}, "none of the 4 files"),
        ({"files": "two"}, "give A:B"),
        ({"limit": 0}, "--limit 0 must be at least 1"),
        ({"split": "test"}, "no split test; it holds train"),
        ({"source": "laion"}, "known: pipe, multigen_depth, cocostuff, magicbrush, .*, seed_unsplash"),
        ({"origin": str(tmp_path / "absent")}, "no such folder"),
        ({"source": "cocostuff"}, r"no column control_seg, image, .*is this cocostuff\?"),
    ):
        with pytest.raises(DataError, match=message):
            prepare(replace(asked, folder=tmp_path / "wrong", **changes))  # type: ignore[arg-type]


def test_nothing_half_written_is_left_of_a_damaged_file(tmp_path: Path) -> None:
    raw = miniature.write_pipe(tmp_path / "raw", 40, files=2, row_group=10)
    last = sorted(raw.rglob("*.parquet"))[-1]
    content = bytearray(last.read_bytes())
    groups = pq.ParquetFile(last).metadata
    page = groups.row_group(groups.num_row_groups - 1).column(0).data_page_offset
    content[page : page + 8] = b"\xff" * 8
    last.write_bytes(content)
    with pytest.raises(DataError, match=rf"{last.name}: .*get it anew"):
        prepare(replace(request("pipe", raw, tmp_path / "out"), rows_per_shard=1000))
    assert not list((tmp_path / "out").rglob("*.part*"))
    assert sorted(path.name for path in (tmp_path / "out" / "units").iterdir()) == ["00000.json"]


def test_files_missing_from_a_set_are_told(tmp_path: Path) -> None:
    raw = miniature.write_pipe(tmp_path / "raw", 12, files=4)
    sorted(raw.rglob("*.parquet"))[1].unlink()
    asked = request("pipe", raw, tmp_path / "out")
    for refused in (lambda: prepare(asked), lambda: open_table(raw)):
        with pytest.raises(DataError, match=r"1 files of split train are missing, first number 00001; .*--files 0:3"):
            refused()
    assert prepare(replace(asked, files="0:3"))["rows"] == 9


def test_twice_does_nothing_twice(tmp_path: Path) -> None:
    raw = miniature.write_pipe(tmp_path / "raw", 6)
    asked = request("pipe", raw, tmp_path / "out")
    first = prepare(asked)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert prepare(replace(asked, workers=2)) | {"format": 1} == first | {"format": 1}
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    with pytest.raises(DataError, match="made with other arguments \\(limit was None, now 3\\)"):
        prepare(replace(asked, limit=3))
    miniature.write_pipe(tmp_path / "raw", 7)
    with pytest.raises(DataError, match="other input files"):
        prepare(asked)
    with pytest.raises(DataError, match="is not empty"):
        prepare(replace(asked, folder=tmp_path))


def test_a_folder_has_one_owner_and_a_full_disk_one_line(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(DataError, match="another process is preparing it"), only_one(tmp_path):
        pass
    with pytest.raises(DataError, match=r"the disk is full .* run again to go on"), only_one(tmp_path):
        Path("/dev/full").write_bytes(b"x")


# --- kills ----------------------------------------------------------------------------------------


def run_and_kill(asked: Request, at: int, before: bool) -> bool:
    """Prepare in a process that gets SIGKILL at its `at`-th rename, before or after it -> was it killed?"""

    def body() -> None:
        count, rename = 0, os.replace

        def killing_rename(old: Path, new: Path) -> None:
            nonlocal count
            count += 1
            if not (count == at and before):
                rename(old, new)
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = killing_rename  # type: ignore[assignment]
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        prepare(asked)

    process = mp.get_context("fork").Process(target=body)
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("source", ["pipe", "seed_unsplash"])
@pytest.mark.parametrize("before", [True, False])
def test_killed_at_every_file_it_gives_the_same_bytes(source: str, before: bool, tmp_path: Path) -> None:
    if source == "pipe":
        raw = miniature.write_pipe(tmp_path / "raw", 14, corrupt=(3,), empty=(8,))
    else:
        raw = miniature.write_seed(tmp_path / "raw", 14, corrupt=(3,), absent=(8,), repeated=(1,))
    asked = request(source, raw, tmp_path / "out")
    whole = replace(asked, folder=tmp_path / "whole")
    prepare(whole)
    # One folder survives kills at its 1st, 2nd, 3rd ... rename, each counted from its own start.
    kills = 0
    while run_and_kill(asked, kills % 4 + 1, before):
        kills += 1
        if kills >= 8:
            prepare(asked)
            break
    assert kills >= 3
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    # And a folder killed once at each rename.
    for at in range(1, 40):
        shutil.rmtree(tmp_path / "out")
        if not run_and_kill(asked, at, before):
            break
        prepare(asked)
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    else:
        raise AssertionError("never came to the end")
    assert at > 8


@pytest.mark.slow
@pytest.mark.parametrize("source", ["pipe", "seed_unsplash"])
def test_the_command_killed_at_odd_moments(source: str, tmp_path: Path) -> None:
    """The script itself, two workers: after a kill no worker lives on, in the end the bytes are those
    of one uninterrupted process."""
    if source == "pipe":
        raw = miniature.write_pipe(tmp_path / "raw", 60, files=12)
    else:
        raw = miniature.write_seed(tmp_path / "raw", 60)
    prepare(request(source, raw, tmp_path / "whole"))
    command = [sys.executable, "scripts/prepare_data.py", source, str(raw), str(tmp_path / "out")]
    command += ["--rows-per-shard", "5", "--workers", "2"]
    for units in (1, 3, 4):
        kill_command(command, tmp_path / "out", units)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rows kept" in done.stderr
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    other = subprocess.run([*command, "--limit", "3"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert other.returncode == 2
    assert other.stderr.startswith("prepare_data: ")
    assert other.stderr.count("\n") == 1


def kill_command(command: list[str], folder: Path, units: int) -> None:
    """Start it, kill -9 when so many units are finished, and see its workers die."""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as run:
        wait_for(lambda: run.poll() is not None or len(list(folder.glob("units/*"))) >= units)
        workers = children(run.pid)
        run.kill()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    if not Path("/proc").is_dir():
        return []
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


# --- SEED-Unsplash --------------------------------------------------------------------------------


def test_seed_pairs_point_to_images_stored_once(tmp_path: Path) -> None:
    raw = miniature.write_seed(tmp_path / "raw", 12, corrupt=(5,), empty=(2,), absent=(7,), repeated=(0, 9))
    manifest = prepare(request("seed_unsplash", raw, tmp_path / "out"))
    assert manifest["dropped"] == {"corrupt image": 1, "image not in the archive": 1, "no text": 1, "repeated": 2}
    archive = gzip.decompress(b"".join(part.read_bytes() for part in find_parts(raw)))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        files = {Path(m.name).name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    expected = [json.loads(line) for file in sorted(raw.rglob("*.jsonl")) for line in file.read_text().splitlines()]
    named = {row[end] for row in expected if row["instruction"] for end in ("source_image", "target_image")}
    assert sum(entry["rows"] for entry in manifest["images"]) == len(named) - 2
    table = open_table(tmp_path / "out")
    assert table.columns[:4] == ["source_image", "target_image", "instruction", "source_caption"]
    assert len(table) == 9
    rows = {(row["source_image"], row["target_image"]): row for row in expected}
    for row in table:
        original = rows[row["source_image"]["path"], row["target_image"]["path"]]
        for name in ("source_image", "target_image"):
            assert row[name] == {"bytes": files[original[name]], "path": original[name]}
        for name in ("instruction", "source_caption", "target_caption", "instruction_ori"):
            assert row[name] == original.get(name)


def test_half_of_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    raw = miniature.write_seed(tmp_path / "raw", 6)
    file = next(iter(sorted(raw.rglob("*.jsonl"))))
    first, *others = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps(json.loads(first) | {"instruction": "\udfff"}), *others]) + "\n")
    assert prepare(request("seed_unsplash", raw, tmp_path / "out"))["dropped"] == {"unreadable annotation": 1}


def test_seed_does_not_depend_on_where_it_was_cut(tmp_path: Path) -> None:
    made = []
    for part_bytes in (331, 5000, 10**9):
        raw = miniature.write_seed(tmp_path / "raw", 9, part_bytes=part_bytes)
        prepare(request("seed_unsplash", raw, tmp_path / "out"))
        made.append({name: data for name, data in contents(tmp_path / "out").items() if name != "manifest.json"})
        shutil.rmtree(tmp_path / "raw")
        shutil.rmtree(tmp_path / "out")
    assert made[0] == made[1] == made[2]


@pytest.fixture
def cut_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Request, Path, bytes]:
    """A SEED download whose last part is missing; the part and its content."""
    monkeypatch.setattr(archive, "BUFFER", 4096)  # what is lost at a cut; the archive is small
    raw = miniature.write_seed(tmp_path / "raw", 14, side=256, part_bytes=30_000)
    part = find_parts(raw)[-1]
    content = part.read_bytes()
    part.unlink()
    return request("seed_unsplash", raw, tmp_path / "out"), part, content


def test_an_incomplete_download_goes_on_when_the_rest_comes(cut_seed: tuple[Request, Path, bytes]) -> None:
    asked, part, content = cut_seed
    with pytest.raises(DataError, match="finished image shards are kept: get the missing parts and run again"):
        prepare(asked)
    kept = {path: path.stat().st_mtime_ns for path in asked.folder.glob("images/*")}
    assert kept
    # A taking of what is there that dies before its end leaves a short last shard behind.
    run_and_kill(replace(asked, allow_truncated=True), 5, before=False)
    assert len(list(asked.folder.glob("images/*"))) > len(kept)
    part.write_bytes(content)
    prepare(asked)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    whole = replace(asked, folder=asked.folder.with_name("whole"))
    prepare(whole)
    assert contents(asked.folder) == contents(whole.folder)


def test_what_is_there_can_be_taken(cut_seed: tuple[Request, Path, bytes]) -> None:
    asked, part, content = cut_seed
    manifest = prepare(replace(asked, allow_truncated=True))
    assert manifest["truncated"]
    assert 0 < manifest["rows"] < 14
    assert manifest["rows"] + manifest["dropped"]["image not in the archive"] == 14
    part.write_bytes(content)
    some = prepare(replace(asked, folder=asked.folder.with_name("some"), files="0:1"))
    assert 0 < some["rows"] < manifest["rows"]
    with pytest.raises(DataError, match="from its first part"):
        prepare(replace(asked, folder=asked.folder.with_name("other"), files="1:3"))
    few = prepare(replace(asked, folder=asked.folder.with_name("few"), limit=3))
    assert few["rows"] == 3
    assert sum(entry["rows"] for entry in few["images"]) <= 10


def test_an_archive_of_something_else_is_named(tmp_path: Path) -> None:
    raw = miniature.write_seed(tmp_path / "raw", 2)
    for file in raw.rglob("*.jsonl"):
        file.write_text(file.read_text().replace("photo-", "picture-"))
    with pytest.raises(DataError, match="no file in it is named by the annotations, which name picture-"):
        prepare(request("seed_unsplash", raw, tmp_path / "out"))
    with pytest.raises(DataError, match=r"no \*\.jsonl in it"):
        prepare(request("seed_unsplash", raw / "auto_editing/unsplash/images", tmp_path / "other"))
