"""Files from outside that are damaged, replaced or odd: each entry names the file in one line, and nothing is lost."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from editar import images
from editar.config import EditConfig, TrainConfig
from editar.data import codes
from editar.data.codes import CodesCache, shard_path, stored_manifest
from editar.data.folder import FolderTable
from editar.data.prepare.prepare import prepare
from editar.data.prepare.request import Request
from editar.edit import edit
from editar.errors import BenchmarkError, CheckpointError, ConfigError, DataError, UserError
from editar.generation.generate import read_cost
from editar.generation.result_folder import ResultFolder
from editar.runtime.entry import load_config
from editar.runtime.files import load_weights, parse_json, provenance, read_starts, save_weights
from editar.runtime.lock import NAME, sole_run
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import load_evaluation
from editar.training.loop import train
from editar.weights.read import read_checkpoint
from editar.weights.run_checkpoint import damage
from scripts.export_run import export
from tests.helpers import miniature
from tests.helpers.tiny import ROOT, tiny_overrides

DEEP = b"[" * 100_000
BROKEN_JSON = {"empty": b"", "half": b'{"a": ', "list": b"[]", "number": b"7", "no text": b"\xff\xfe", "deep": DEEP}
BROKEN_YAML = {
    "no text": b"\xff\xfe\x00",
    "UTF-16": "steps: 4\n".encode("utf-16"),
    "number": b"3",
    "list": b"- 1\n- 2\n",
    "half": b"gpt: {dim: 3",
    "no mapping of its own": b"a: [1, 2\nb: }",
    "code": b"!!python/object/apply:os.system ['true']",
    "key twice": b"seed: 0\nseed: 3\n",
    "deep": b"[" * 3000,
}


def one_line(error: pytest.ExceptionInfo[UserError], name: str) -> None:
    assert "\n" not in str(error.value) and name in str(error.value), str(error.value)


@pytest.mark.parametrize("name", BROKEN_YAML)
def test_a_damaged_config_is_named(run: Path, name: str) -> None:
    (run / "config.yaml").write_bytes(BROKEN_YAML[name])
    for opened in (lambda: EditPipeline.from_pretrained(run, "cpu"), lambda: read_checkpoint(run)):
        with pytest.raises(ConfigError, match=r"config\.yaml: damaged \(") as error:
            opened()
        one_line(error, str(run / "config.yaml"))


@pytest.mark.parametrize(
    ("change", "said"),
    [(("seed: 0", "sead: 0"), "unknown key 'sead'"), (("base: 50.0", "base: .nan"), "not a finite number")],
)
def test_a_config_with_wrong_settings_is_named(run: Path, change: tuple[str, str], said: str) -> None:
    path = run / "config.yaml"
    path.write_text(path.read_text().replace(*change, 1))
    with pytest.raises(ConfigError, match=said) as error:
        EditPipeline.from_pretrained(run, "cpu")
    one_line(error, f"{path}: ")


@pytest.mark.parametrize("name", BROKEN_JSON)
def test_damaged_json_is_named_wherever_it_is_read(tmp_path: Path, run: Path, name: str) -> None:
    content, count = BROKEN_JSON[name], 0

    def refused(file: str, error: type[UserError], read: Callable[[], Any]) -> None:
        nonlocal count
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(error) as found:
            read()
        one_line(found, path.name)
        path.unlink()
        count += 1

    request = Request("pipe", str(miniature.write_pipe(tmp_path / "download", 4)), tmp_path / "prepared", workers=1)
    refused("cache/nano/manifest.json", DataError, lambda: stored_manifest(str(tmp_path / "cache"), "nano"))
    refused("prepared/manifest.json", DataError, lambda: prepare(request))
    refused("prepared/unfinished.json", DataError, lambda: prepare(request))
    refused("own/pairs.jsonl", DataError, lambda: len(FolderTable(tmp_path / "own")) or FolderTable(tmp_path / "none"))
    refused("scores.json", BenchmarkError, lambda: load_evaluation(tmp_path / "scores.json"))
    if name != "list":
        refused("provenance.json", ConfigError, lambda: read_starts(tmp_path))
        refused("map.json", BenchmarkError, lambda: ResultFolder(tmp_path / "map.json"))
    if name not in ("list", "number"):
        refused("generation.json", BenchmarkError, lambda: read_cost(tmp_path))
    (tmp_path / NAME).write_bytes(content)
    with sole_run(tmp_path):
        pass
    (run / "checkpoints/step_0000004/state.json").write_bytes(content)
    assert damage(run / "checkpoints/step_0000004")
    print(f"{name}: {count + 2} files")


def test_deep_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested without end"):
        parse_json(DEEP)


@pytest.mark.parametrize("file", ["model", "tokenizer"])
def test_whole_numbers_are_no_weights(run: Path, file: str) -> None:
    path = run / f"{file}.safetensors"
    save_weights({key: value.long() for key, value in load_weights(path).items()}, path)
    with pytest.raises(CheckpointError, match=r"holds torch\.int64, the config needs torch\.float32"):
        EditPipeline.from_pretrained(run, "cpu")


@pytest.mark.parametrize("settings", [["teacher.dim=5"], ["teacher.grid=3"], ["teacher.grid=2", "teacher.dim=12"]])
def test_a_teacher_that_does_not_fit_is_refused_before_data_is_encoded(
    tmp_path: Path, tiny_tokenizer: Path, settings: list[str]
) -> None:
    with pytest.raises(ConfigError, match=r"teacher"):
        train(load_config(TrainConfig, "train", tiny_overrides(tmp_path / "run", tiny_tokenizer, *settings)))
    assert list((tmp_path / "run").iterdir()) == []


def test_a_picture_of_one_code_has_no_teacher() -> None:
    with pytest.raises(ConfigError, match="image_size=8 makes a single code"):
        load_config(TrainConfig, "train", ["output_dir=x", "image_size=8"])


def own_pairs(folder: Path, rows: int = 12) -> Path:
    folder.mkdir()
    for index, name in enumerate(("a.png", "b.png")):
        Image.new("RGB", (64, 64), (200, 30, 40 * index)).save(folder / name)
    row = {"source": "a.png", "target": "b.png", "instruction": "make it blue"}
    (folder / "pairs.jsonl").write_text((json.dumps(row) + "\n") * rows)
    return folder


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


@pytest.mark.parametrize("output", ["{}/new/", "{}", "{}/.."])
def test_a_folder_is_no_output(tmp_path: Path, output: str) -> None:
    given = [f"image={tmp_path / 'a.png'}", "instruction=x", "checkpoint=c", f"output={output.format(tmp_path)}"]
    with pytest.raises(ConfigError, match="is a folder; give the name of a picture"):
        edit(load_config(EditConfig, "edit", given))


@pytest.mark.parametrize("override", ["=3", "+=3", "~=3"])
def test_a_value_needs_a_key(override: str) -> None:
    with pytest.raises(ConfigError, match="a setting is KEY=VALUE"):
        load_config(EditConfig, "edit", ["image=a", "instruction=b", "checkpoint=c", override])


@pytest.mark.parametrize(("script", "commit"), [("exit 3", "unknown"), ("printf '\\377\\376'", "\ufffd\ufffd")])
def test_a_git_that_fails_or_says_nonsense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, commit: str
) -> None:
    git = tmp_path / "git"
    git.write_text(f"#!/bin/sh\n{script}\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = provenance()
    assert found["commit"] == commit and json.loads(json.dumps(found)) == found


def test_an_export_onto_itself_or_of_damaged_starts_is_refused_and_harms_nothing(run: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    with pytest.raises(CheckpointError, match="exists already"):
        export(run, run)
    (run / "provenance.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"provenance\.json: damaged"):
        export(run, tmp_path / "out")
    (run / "provenance.json").write_bytes(before[run / "provenance.json"])
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16", "F"])
def test_bands_change_no_pixel(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 65536, (37, 29)).astype(np.uint16)
    picture = {
        "RGBA": lambda: Image.fromarray(rng.integers(0, 256, (37, 29, 4), np.uint8), "RGBA"),
        "LA": lambda: Image.fromarray(rng.integers(0, 256, (37, 29, 2), np.uint8), "LA"),
        "P": lambda: Image.fromarray((grey % 256).astype(np.uint8)).convert("P"),
        "I;16": lambda: Image.fromarray(grey),
        "F": lambda: Image.fromarray((grey / 65535).astype(np.float32)),
    }[mode]()
    if mode == "P":
        picture.info["transparency"] = 7
    whole = np.asarray(images.to_rgb(picture))
    assert whole.shape == (37, 29, 3)
    for pixels in (1, 29, 100):
        monkeypatch.setattr(images, "BAND_PIXELS", pixels)
        assert np.array_equal(np.asarray(images.to_rgb(picture)), whole)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_a_huge_picture_takes_little_more_than_its_own_size(tmp_path: Path, mode: str) -> None:
    """120 megapixels; blended at once in float64, RGBA would take about 8 GB."""
    path = tmp_path / "huge.png"
    Image.new(mode, (12000, 10000), (255, 0, 0, 128) if mode == "RGBA" else 30000).save(path, compress_level=1)
    code = f"from editar.images import load_image; load_image({str(path)!r})\n"
    code += "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2.5e9, f"{int(done.stdout) / 1e6:.1f} GB"


@pytest.mark.slow
def test_pictures_nobody_can_use(tmp_path: Path) -> None:
    """Sizes that lie, devices, pipes, loops of links, other formats: one line each, and no memory."""
    limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = images.encode_image(Image.new("RGB", (64, 64)))

    def header(width: int, height: int) -> bytes:
        return good[:16] + width.to_bytes(4, "big") + height.to_bytes(4, "big") + good[24:]

    contents = {
        "empty": b"", "text": b"hello" * 50, "half": good[: len(good) // 2], "zero": header(0, 0),
        "wide": header(2**31 - 1, 1), "large": header(100_000, 100_000), "svg": b"<svg/>", "pdf": b"%PDF-1.4\n%%EOF",
        "bmp": b"BM" + b"\xff" * 100, "tiff": b"II*\0\x08\0\0\0\x00\x00\x08\0\0\0",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n%%EOF\n",
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    odd = [*contents, "loop", "dangling", ".", "absent", "x" * 5000, "/dev/null", "/dev/zero", "/proc/self/mem"]
    for name in odd:
        with pytest.raises(UserError) as error:
            images.load_image(tmp_path / name)
        assert "\n" not in str(error.value), name
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit < 500_000
    print(f"{len(odd)} pictures refused")


def test_exchanged_weights_are_told_apart(run: Path) -> None:
    """Swapped files are told apart by what they hold."""
    model, tokenizer = run / "model.safetensors", run / "tokenizer.safetensors"
    first, second = model.read_bytes(), tokenizer.read_bytes()
    model.write_bytes(second)
    tokenizer.write_bytes(first)
    with pytest.raises(CheckpointError, match="a VQ tokenizer, where a GPT is wanted"):
        EditPipeline.from_pretrained(run, torch.device("cpu"))


def damaged_cache(run: Path, harm: Callable[[Path], Any]) -> CodesCache:
    """The run's cache of codes after `harm` to its only shard."""
    manifest = stored_manifest(str(run / "codes"), "nano")
    assert manifest is not None
    harm(shard_path(run / "codes/nano", 0))
    return CodesCache(run / "codes/nano", manifest, 0.0, codebook_size=0xFFFF)


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
            one_line(error, str(run / "codes/nano"))
            path.write_bytes(whole)
    print(f"{2 * len(harms)} damaged caches refused: {', '.join(name for name in harms if 'bit' not in name)}, bits")


def data_positions(path: Path, rng: random.Random, count: int) -> list[int]:
    """Places inside the stored pictures of a shard; not in those that the headers repeat as smallest or largest."""
    whole = path.read_bytes()
    pictures = sorted({row["target_picture"] for row in pq.read_table(path).to_pylist()})
    once = [picture for picture in pictures if whole.count(picture) == 1]
    return [whole.index(picture) + rng.randrange(len(picture)) for picture in rng.sample(once, count)]
