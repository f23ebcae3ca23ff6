"""Data sets, lists and caches that are damaged, replaced or odd: found by name, never trained on."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from editar.config import TrainConfig, from_yaml
from editar.data import codes
from editar.data.codes import CodesCache, shard_path, stored_manifest, unpack_picture
from editar.data.folder import FolderTable
from editar.data.pictures import tar_members
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.data.prepare.webdataset import list_tars
from editar.data.tables import open_table
from editar.errors import BenchmarkError, ConfigError, DataError
from editar.generation.edit_list import read_lines
from editar.runtime.entry import load_config
from editar.runtime.files import content_sum, read_starts
from editar.runtime.log import MetricLogger
from editar.tables.scores import load_evaluation
from editar.training.loop import train
from tests.helpers import miniature
from tests.helpers.hostile import names_in_one_line
from tests.helpers.tiny import tiny_overrides, train_config


def own_pairs(folder: Path, rows: int = 12) -> Path:
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (200, 30, 40 * index)).save(folder / name)
    row = {"source": "a.png", "target": "b.png", "instruction": "make it blue"}
    (folder / "pairs.jsonl").write_text((json.dumps(row) + "\n") * rows)
    return folder


def damaged_cache(run: Path, harm: Callable[[Path], Any]) -> CodesCache:
    """The run's cache of codes after `harm` to its only shard."""
    manifest = stored_manifest(str(run / "codes"), "nano")
    assert manifest is not None
    harm(shard_path(run / "codes/nano", 0))
    return CodesCache(run / "codes/nano", manifest, 0.0, codebook_size=0xFFFF)


def data_positions(path: Path, rng: random.Random, count: int) -> list[int]:
    """Places inside the stored pictures of a shard; not in those that the headers repeat as smallest or largest."""
    whole = path.read_bytes()
    pictures = sorted({row["target_picture"] for row in pq.read_table(path).to_pylist()})
    once = [picture for picture in pictures if whole.count(picture) == 1]
    return [whole.index(picture) + rng.randrange(len(picture)) for picture in rng.sample(once, count)]


def test_a_replaced_picture_changes_the_key_of_the_cache(tmp_path: Path, tiny_tokenizer: Path) -> None:
    own = own_pairs(tmp_path / "own")
    settings = ["data=folder", f"data.sources.folder.path={own}", "data.heldout_samples=2", "steps=1", "eval_every=9"]

    def start(name: str) -> None:
        overrides = [*settings, f"data.cache={tmp_path / 'codes'}", "data.build_cache=true"]
        train(load_config(TrainConfig, "train", tiny_overrides(tmp_path / name, tiny_tokenizer, *overrides)))

    start("one")
    start("two")
    Image.new("RGB", (64, 64), (1, 250, 3)).save(own / "a.png")
    with pytest.raises(DataError, match=r"was cached with revision .* or remove that folder and make the cache anew"):
        start("three")


def test_the_key_follows_links(tmp_path: Path) -> None:
    own = own_pairs(tmp_path / "own")
    seen = [FolderTable(own).revision]
    (own / "a.png").unlink()
    Image.new("RGB", (8, 8)).save(own / "d.png")
    (own / "a.png").symlink_to(own / "d.png")
    seen.append(FolderTable(own).revision)
    assert len(set(seen)) == 2 and FolderTable(own).revision == seen[-1]


def test_a_shard_in_the_place_of_another_is_named(tmp_path: Path) -> None:
    raw = miniature.write_pipe(tmp_path / "raw", 6, files=1)
    prepare(Request("pipe", str(raw), tmp_path / "pipe", rows_per_shard=3))
    first, second = sorted((tmp_path / "pipe").rglob("*.parquet"))
    manifest = json.loads((tmp_path / "pipe/manifest.json").read_text())
    first.write_bytes(second.read_bytes())
    manifest["files"][0]["bytes"] = manifest["files"][1]["bytes"]
    (tmp_path / "pipe/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=rf"{first.name} is a copy of {second.name}; copy the folder anew"):
        open_table(tmp_path / "pipe")


def test_every_damage_to_cached_codes_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shard_path(run / "codes/nano", 0)
    whole, table, rng = path.read_bytes(), pq.read_table(path), random.Random(0)
    rows = table.to_pylist()

    def rewrite(changed: pa.Table) -> Callable[[Path], Any]:
        return lambda file: pq.write_table(changed, file)

    def flip(position: int) -> Callable[[Path], Any]:
        return lambda file: file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])

    def with_entry(**entry: object) -> Callable[[Path], Any]:
        return rewrite(pa.Table.from_pylist([row | entry for row in rows], schema=table.schema))

    target = rows[0]["target"]
    harms = {
        "empty": lambda file: file.write_bytes(b""),
        "half": lambda file: file.write_bytes(whole[: len(whole) // 2]),
        "few rows": rewrite(table.slice(0, 5)),
        "no target": rewrite(table.drop_columns(["target"])),
        "long codes": with_entry(target=target + b"\0\0"),
        "half a code": with_entry(target=target[:-1]),
        "a large code": with_entry(target=b"\xff\xff" + target[2:]),
        "no texts": with_entry(forward=None),
        "no picture": with_entry(target_picture=None),
        # Where the codes and pictures lie, whose sums parquet keeps; headers have none.
        **{f"bit at {position}": flip(position) for position in data_positions(path, rng, 20)},
    }
    for in_memory in (1 << 29, 0):
        monkeypatch.setattr(codes, "IN_MEMORY", in_memory)
        for harm in harms.values():
            cache = damaged_cache(run, harm)
            with pytest.raises(
                DataError, match=r"not readable \(|codes instead of|is damaged \(|has code 65535"
            ) as error:
                [cache[row] for row in range(len(cache))]
            names_in_one_line(error, str(run / "codes/nano"))
            path.write_bytes(whole)
    print(f"{2 * len(harms)} damaged caches refused: {', '.join(name for name in harms if 'bit' not in name)}, bits")


def test_pipes_are_no_data(tmp_path: Path) -> None:
    """Each would wait for a writer for ever."""
    for name in ("a.tar", "a.parquet", "a.jsonl"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/b.tar").symlink_to("nowhere.tar")
    for folder, name in ((tmp_path, "a"), (tmp_path / "b", "b")):
        with pytest.raises(DataError, match=rf"{name}\.tar is no file; remove it or get it anew"):
            prepare(Request("webdataset", str(folder), tmp_path / "out"))
    for read in (lambda: open_table(tmp_path), lambda: prepare(Request("pipe", str(tmp_path), tmp_path / "out"))):
        with pytest.raises(DataError, match=r"a\.parquet is no file; remove it or get it anew"):
            read()
    with pytest.raises(DataError, match=r"a\.jsonl is no file; give a UTF-8 file"):
        read_lines(tmp_path / "a.jsonl", tmp_path)


def test_a_text_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    raw = miniature.write_webdataset(tmp_path / "raw", 6, texts={2: b"a \xff star", 4: "ein grüner Stern".encode()})
    manifest = prepare(Request("webdataset", str(raw), tmp_path / "out"))
    assert (manifest["rows"], manifest["dropped"]) == (5, {"text is not UTF-8": 1})
    assert any("grüner" in row["instruction"] for row in open_table(tmp_path / "out"))


def test_a_cache_cut_short_is_mended(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_run / "codes", tmp_path / "codes"))
    shard = next(cache.rglob("codes-*.parquet"))
    before = shard.read_bytes()
    shard.write_bytes(before[: len(before) // 2])
    train(train_config(*tiny_overrides(tmp_path / "run", tiny_tokenizer, f"data.cache={cache}", "steps=1")))
    assert shard.read_bytes() == before


def test_codes_of_another_row_are_named(tiny_run: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    cache = Path(shutil.copytree(tiny_run / "codes", tmp_path / "codes"))
    shard = next(cache.rglob("codes-*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table.take(list(reversed(range(len(table))))), shard)
    with pytest.raises(DataError, match=r"in the place of nano/\d+ are the codes of nano/\d+; remove that folder"):
        train(train_config(*tiny_overrides(tmp_path / "run", tiny_tokenizer, f"data.cache={cache}", "steps=1")))


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    file = next(miniature.write_multigen_depth(tmp_path / "raw", 4, files=1).rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.schema.get_field_index("text"), "text", pa.array(range(4))), file)
    with pytest.raises(DataError, match="no row was kept"):
        prepare(Request("multigen_depth", str(tmp_path / "raw"), tmp_path / "out"))
    assert "text is no text" in (tmp_path / "out/dropped.jsonl").read_text()


def test_a_byte_order_mark_is_no_part_of_a_list(tmp_path: Path) -> None:
    text = json.dumps({"image": "a.png", "instruction": "x"})
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8-sig")
    assert [edit.instruction for edit in read_lines(tmp_path / "list.jsonl", tmp_path)] == ["x"]


def test_a_flipped_bit_in_a_prepared_folder_is_noticed(five_sources: dict[str, Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(five_sources["multigen_depth"], tmp_path / "copy"))
    shard = next(copy.rglob("*.parquet"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    table = open_table(copy)
    with pytest.raises(DataError, match=r"parquet: cannot be read \(.*CRC.*get the file anew"):
        [table[row] for row in range(len(table))]
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"its manifest\.json is gone"):
        open_table(copy)


def test_a_cached_picture_that_is_none() -> None:
    with pytest.raises(DataError, match=r"a cached picture is damaged .* make them anew"):
        unpack_picture(b"junk")


def test_rows_that_a_manifest_invents(tmp_path: Path) -> None:
    prepared = tmp_path / "pipe"
    prepare(Request("pipe", str(miniature.write_pipe(tmp_path / "raw", 6, files=1)), prepared))
    file = prepared / "manifest.json"
    good = file.read_text()
    for rows in ("-5", '"6"', "1.5", "null"):
        file.write_text(good.replace('"rows": 6', f'"rows": {rows}'))
        with pytest.raises(DataError, match=r"manifest\.json: not a manifest of"):
            open_table(prepared)
    file.write_text(good.replace('"rows": 6', '"rows": 600'))
    with pytest.raises(DataError, match=r"holds 6 rows, manifest\.json lists 600; copy the folder anew"):
        open_table(prepared)
    file.write_text(good.replace('"rows": 6', '"rows": 5', 1))
    with pytest.raises(DataError, match=r"\(another number of rows than its files have\)"):
        open_table(prepared)
    twice = json.loads(good)
    twice["files"] *= 2
    file.write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"\(a file twice\)"):
        open_table(prepared)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_cut_between_two_samples(tmp_path: Path, mode: str) -> None:
    whole, cut = tmp_path / "whole.tar", tmp_path / "tars" / "cut.tar"
    cut.parent.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    with tarfile.open(whole, "w") as tar:
        for name in ("0.src.png", "0.tgt.png", "1.src.png"):
            tar.add(tmp_path / "a.png", name)
        end = tar.offset
    content = whole.read_bytes()
    assert len(tar_members(whole, {".png"})) == 3
    if mode == "w:gz":
        cut.write_bytes(gzip.compress(content[:end]))
    else:
        cut.write_bytes(content[:end])
        with pytest.raises(DataError, match="no end mark"):
            tar_members(cut, {".png"})
    with pytest.raises(DataError, match=r"cut\.tar: damaged or cut short \(no end mark"):
        len(list(list_tars(str(cut.parent))[0]._members(read=True)))


def test_pipes_are_not_waited_for(tiny_run: Path, tmp_path: Path) -> None:
    for name in ("scores.json", "config.yaml", "provenance.json", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(BenchmarkError, match=r"scores\.json is no file"):
        load_evaluation(tmp_path)
    with pytest.raises(ConfigError, match=r"config\.yaml: is no file"):
        from_yaml(TrainConfig, tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"provenance\.json: damaged .*is no file"):
        read_starts(tmp_path)
    with pytest.raises(BenchmarkError, match=r"scores\.json: cannot be read \(is no file\)"):
        content_sum([tmp_path / "scores.json"])
    with pytest.raises(ConfigError, match=r"metrics\.jsonl is no file; remove it"):
        MetricLogger(tmp_path, 1)
