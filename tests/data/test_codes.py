"""The codes cache: the same samples as from pixels, made once, refused when it does not fit."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from editar.config import TrainConfig
from editar.data import codes, encode
from editar.data.loader import Reader, TrainStream
from editar.data.mixture import Mixture
from editar.data.sources import open_sources
from editar.errors import ConfigError, DataError
from editar.runtime.distributed import Ranks
from editar.runtime.entry import load_config
from editar.training.encoders import build_teacher_of, build_tokenizer
from editar.training.loop import train
from editar.weights.load import vq_checksum
from tests.helpers import miniature
from tests.helpers.tiny import ROOT, TINY_GPT, TINY_TOKENIZER, run_module

JPEG = "data.cache_pictures=jpeg"  # data=editar keeps the teacher's own input
WORLD = Ranks(0, 1, torch.device("cpu"))


def overrides(folders: dict[str, Path], tokenizer: Path, cache: Path | None, *more: str) -> list[str]:
    return [
        "data=editar",
        *(f"data.sources.{name}.path={folder}" for name, folder in folders.items()),
        f"tokenizer.weights={tokenizer}",
        *TINY_TOKENIZER,
        *(item for item in TINY_GPT if not item.startswith("data.")),
        "data.heldout_samples=10",
        *([f"data.cache={cache}"] if cache else []),
        *more,
    ]


def config(folders: dict[str, Path], tokenizer: Path, cache: Path | None, *more: str) -> TrainConfig:
    return load_config(TrainConfig, "train", ["output_dir=unused", *overrides(folders, tokenizer, cache, *more)])


def fill(cfg: TrainConfig) -> None:
    tokenizer = build_tokenizer(cfg, WORLD.device)
    teacher = build_teacher_of(cfg, WORLD.device)
    for source in open_sources(cfg.data).values():
        encode.build_cache(cfg, source, tokenizer, vq_checksum(tokenizer.state_dict()), teacher, WORLD)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, five_sources: dict[str, Path], tiny_tokenizer: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    fill(config(five_sources, tiny_tokenizer, folder, JPEG))
    return folder


def streams(cfg: TrainConfig) -> TrainStream:
    teacher = build_teacher_of(cfg, WORLD.device)
    assert teacher is not None
    tokenizer = build_tokenizer(cfg, WORLD.device)
    checksum = vq_checksum(tokenizer.state_dict())
    sources = open_sources(cfg.data)
    readers = [
        Reader(s, encode.open_cache(cfg, s, checksum) if cfg.data.cache else None, cfg.image_size, teacher.prepare)
        for s in sources.values()
    ]
    mixture = Mixture({n: s.cfg.weight for n, s in sources.items()}, {n: len(s) for n, s in sources.items()}, 0)
    return TrainStream(readers, mixture, 0)


def test_cached_draws_are_the_pixel_draws(cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path) -> None:
    pixels = streams(config(five_sources, tiny_tokenizer, None))
    cached = streams(config(five_sources, tiny_tokenizer, cache, JPEG))
    tokenizer = build_tokenizer(config(five_sources, tiny_tokenizer, None), WORLD.device)
    for (_, a), (_, b) in zip(pixels.__getitems__(list(range(60))), cached.__getitems__(list(range(60))), strict=True):
        assert (a.id, a.task, a.instruction) == (b.id, b.task, b.instruction)
        both = encode.batch_to_tensor(np.stack([a.source[0], a.target]))
        same = tokenizer.encode(both).numpy() == np.stack([b.source, b.target])
        assert same.mean() > 0.99  # other batch sizes may round a tie the other way
        assert b.picture is not None and a.picture is not None
        assert np.abs(a.picture.astype(int) - b.picture).mean() < 6  # JPEG


def test_exact_pictures_are_the_teachers_own_input(
    five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    fill(config(five_sources, tiny_tokenizer, tmp_path))
    pixels, cached = (streams(config(five_sources, tiny_tokenizer, cache)) for cache in (None, tmp_path))
    for (_, a), (_, b) in zip(pixels.__getitems__(list(range(20))), cached.__getitems__(list(range(20))), strict=True):
        assert a.picture is not None and b.picture is not None and np.array_equal(a.picture, b.picture)
    without = config(five_sources, tiny_tokenizer, tmp_path, "teacher=none")
    source = open_sources(without.data)["pipe"]
    checksum = vq_checksum(build_tokenizer(without, WORLD.device).state_dict())
    assert encode.open_cache(without, source, checksum).manifest.pictures.startswith("exact:")


def test_a_cache_is_not_made_twice(cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.parquet")}
    fill(config(five_sources, tiny_tokenizer, cache, JPEG))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.parquet")} == before


def test_codes_alone_are_enough_to_train(
    cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """The raw data may be on another machine."""
    gone = {name: tmp_path / "gone" / name for name in five_sources}
    cfg = config(gone, tiny_tokenizer, cache, JPEG, "steps=2", "eval_every=2", f"output_dir={tmp_path / 'run'}")
    assert (train(cfg) / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("image_size=32", "was cached with image_size 64, this run needs 32"),
        ("data.sources.multigen_depth.prompt='depth {}'", "was cached with texts"),
        ("data.sources.multigen_canny.canny.operator=cv2", "was cached with texts"),
        ("data.sources.pipe.images=upright", "was cached with texts"),
        ("data.cache_pictures=exact", "was cached with pictures 'jpeg', this run needs 'exact:"),
        ("data.heldout_samples=10", None),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(
    cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path, override: str, message: str | None
) -> None:
    cfg = config(five_sources, tiny_tokenizer, cache, JPEG, override)
    if message is None:
        streams(cfg)
        return
    with pytest.raises(DataError, match=message):
        streams(cfg)


def test_another_tokenizer_is_refused_by_name(cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path) -> None:
    cfg = config(five_sources, tiny_tokenizer, cache, JPEG)
    source = open_sources(cfg.data)["pipe"]
    with pytest.raises(DataError, match=r"pipe was cached with tokenizer '[0-9a-f]{16}', this run needs 'another'"):
        encode.open_cache(cfg, source, "another")


def test_an_unfinished_cache_is_refused(five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path) -> None:
    cfg = config(five_sources, tiny_tokenizer, tmp_path)
    source = open_sources(cfg.data)["pipe"]
    with pytest.raises(DataError, match=r"1 of 1 shards of codes are missing; run scripts/cache_codes\.py"):
        encode.open_cache(cfg, source, "any")


def test_features_and_reversal_do_not_mix(five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot hold pipe, whose pairs are used backwards too"):
        fill(config(five_sources, tiny_tokenizer, tmp_path, "data.cache_features=true"))


def test_stored_features_come_back(five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path) -> None:
    more = ["data.cache_features=true", "data.sources.pipe.backward=0"]
    cfg = config(five_sources, tiny_tokenizer, tmp_path, *more)
    fill(cfg)
    teacher = build_teacher_of(cfg, WORLD.device)
    source = open_sources(cfg.data)["cocostuff"]
    checksum = vq_checksum(build_tokenizer(cfg, WORLD.device).state_dict())
    assert teacher is not None
    item = Reader(source, encode.open_cache(cfg, source, checksum), 64, teacher.prepare).item(2, 0.0, 0.0)
    pixels = Reader(source, None, 64, teacher.prepare).item(2, 0.0, 0.0)
    assert pixels.picture is not None and item.features is not None and item.picture is None
    expected = teacher(torch.from_numpy(pixels.picture[None]))[0].numpy()
    np.testing.assert_allclose(item.features, expected, atol=2e-3)
    other = config(five_sources, tiny_tokenizer, tmp_path, more[1], JPEG, "teacher=dinov2")  # its own are not there
    assert encode.open_cache(other, source, checksum)[2].features is None


def test_bad_rows_keep_their_place(tmp_path: Path, tiny_tokenizer: Path) -> None:
    folder = miniature.write_pipe(tmp_path / "pipe", 12, corrupt=(2,))
    others = [f"~data.sources.{n}" for n in ("multigen_depth", "multigen_canny", "cocostuff", "seed_unsplash")]
    cfg = config({"pipe": folder}, tiny_tokenizer, tmp_path / "cache", "data.heldout_samples=2", *others)
    fill(cfg)
    with_cache = streams(cfg).__getitems__(list(range(20)))
    cfg.data.cache = None
    without = streams(cfg).__getitems__(list(range(20)))
    assert [item.id for _, item in with_cache] == [item.id for _, item in without]
    assert [item.replaced for _, item in with_cache] == [item.replaced for _, item in without]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.multiprocess
def test_killed_and_shared_caches_have_the_same_bytes(tmp_path: Path, tiny_tokenizer: Path) -> None:
    """One process, killed several times, and two processes: all end with what one undisturbed run wrote."""
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    for name, colour in (("a.png", "navy"), ("b.png", "pink")):
        Image.new("RGB", (16, 16), colour).save(pairs / name)
    lines = [json.dumps({"source": "a.png", "target": "b.png", "instruction": f"number {k}"}) for k in range(2100)]
    (pairs / "pairs.jsonl").write_text("\n".join(lines))
    command = [
        "data=folder", f"data.sources.folder.path={pairs}", "image_size=16", "teacher=none",
        f"tokenizer.weights={tiny_tokenizer}", *TINY_TOKENIZER, "num_workers=0",
    ]  # fmt: skip

    def script(folder: Path) -> list[str]:
        return [sys.executable, str(ROOT / "scripts/cache_codes.py"), *command, f"data.cache={folder}"]

    assert subprocess.run(script(tmp_path / "whole"), check=False).returncode == 0
    shards = len(list((tmp_path / "whole/folder").glob("*.parquet")))
    assert shards == 3
    for kill in range(shards - 1):
        process = subprocess.Popen(script(tmp_path / "killed"))
        while len(list((tmp_path / "killed").glob("folder/codes-*.parquet"))) <= kill and process.poll() is None:
            time.sleep(0.02)
        time.sleep(0.2)  # in the middle of the next shard
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert subprocess.run(script(tmp_path / "killed"), check=False).returncode == 0
    done = run_module("scripts/cache_codes.py", *command, f"data.cache={tmp_path / 'shared'}", processes=2)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = digest(tmp_path / "whole")
    assert {k: v for k, v in digest(tmp_path / "killed").items() if not k.endswith(".part")} == whole
    assert digest(tmp_path / "shared") == whole


def test_twenty_steps_on_all_five(five_sources: dict[str, Path], tiny_tokenizer: Path, tmp_path: Path) -> None:
    """From pixels and from codes the same training, as far as rounding goes."""
    losses = []
    for name, cache in (("pixels", None), ("codes", tmp_path / "cache")):
        more = ["steps=20", "eval_every=20", f"output_dir={tmp_path / name}", "teacher=none"]
        cfg = config(five_sources, tiny_tokenizer, cache, *more, *(["data.build_cache=true"] if cache else []))
        folder = train(cfg)
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(row) for row in rows])
    assert {f"heldout_{name}" for name in five_sources} <= losses[0][-1].keys()
    for a, b in zip(*losses, strict=True):
        assert a.get("token") == pytest.approx(b.get("token"), abs=5e-3)


def test_from_disk_as_from_memory(cache: Path, five_sources: dict[str, Path], tiny_tokenizer: Path) -> None:
    """From disk, row group by row group, the same rows as from memory."""
    cfg = config(five_sources, tiny_tokenizer, cache, JPEG)
    source = open_sources(cfg.data)["pipe"]
    checksum = vq_checksum(build_tokenizer(cfg, WORLD.device).state_dict())
    memory, disk = (encode.open_cache(cfg, source, checksum) for _ in range(2))
    assert memory.in_memory
    disk.in_memory = False
    for row in (0, 5, 23):
        a, b = memory[row], disk[row]
        assert (a.id, a.texts, a.target_picture) == (b.id, b.texts, b.target_picture)
        assert np.array_equal(a.source, b.source)
    with pytest.raises(IndexError):
        disk[len(disk)]


def test_features_of_too_many_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="too many"):
        codes.pack_features(np.zeros((2049, 1)))
