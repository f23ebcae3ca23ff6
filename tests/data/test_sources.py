"""Rows of the public schemas become pairs, with EditAR's wording or the data set's own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

from editar.config import DataConfig, SourceConfig, TrainConfig
from editar.config.data import CannyConfig
from editar.data.sample import BadRow, Texts, resize_pair
from editar.data.sources import READERS, Source, label_palette, open_sources, picture, pipe_texts
from editar.errors import ConfigError, DataError
from editar.runtime.entry import load_config
from tests.helpers import miniature

VLM, CLASS, REF = "Instruction_VLM-LLM", "Instruction_Class", "Instruction_Ref_Dataset"


def config(*overrides: str) -> TrainConfig:
    return load_config(TrainConfig, "train", ["output_dir=unused", *overrides])


def test_every_source_of_the_paper_reads_its_real_schema(five_sources: dict[str, Path]) -> None:
    cfg = config("experiment=editar_xl", *paths(five_sources), "data.heldout_samples=5")
    sources = open_sources(cfg.data)
    assert list(sources) == ["multigen_depth", "multigen_canny", "cocostuff", "pipe", "seed_unsplash"]
    for name, source in sources.items():
        pair = source.pair(0)
        first, second = resize_pair(pair, 64)
        assert first.shape == (1, 64, 64, 3) and second.shape == (64, 64, 3)
        assert pair.task == name and pair.id == f"{name}/0"
        assert all(pair.texts.instructions)
    depth, canny = (sources[name].pair(3) for name in ("multigen_depth", "multigen_canny"))
    assert depth.texts.instructions[0].startswith(
        "Given the depth image, generate an image following the description: "
    )
    assert canny.texts.instructions[0].startswith("Given the canny edge image, ")
    assert np.array_equal(np.asarray(depth.target), np.asarray(canny.target))
    assert set(np.unique(resize_pair(canny, 64)[0])) <= {0, 255}


def paths(folders: dict[str, Path]) -> list[str]:
    return [f"data.sources.{name}.path={folder}" for name, folder in folders.items()]


def test_pipe_as_editar_reads_it() -> None:
    row = {VLM: "Add a cat", CLASS: "add cat", REF: ""}
    exact = SourceConfig("pipe", wording="editar", empty="keep", removal="editar", backward=0.5)
    assert pipe_texts(row, exact) == Texts(("Add a cat",), ("Remove a cat",), 0.5)
    assert pipe_texts({**row, VLM: ""}, exact) == Texts(("",), ("Remove ",), 0.5)
    assert pipe_texts({**row, VLM: "Put 2 cats"}, exact).reversed_instructions == ("Remove 2 cats",)


def test_what_is_named_after_the_paper_reads_as_the_paper() -> None:
    paper, clean = (config(f"experiment={name}").data.sources for name in ("editar_xl", "editar_xl_clean"))
    assert {source.images for source in paper.values()} == {"official"}
    assert (paper["pipe"].empty, paper["pipe"].removal) == ("keep", "editar")
    assert {source.images for source in clean.values()} == {"upright"}
    assert (clean["pipe"].empty, clean["pipe"].removal) == ("other", "guarded")
    assert paper["multigen_canny"].canny.operator == "kornia"


def test_pictures_as_the_official_loaders_open_them() -> None:
    """Alpha is dropped and EXIF not read; `upright` blends over white and turns."""
    picture_of = np.zeros((4, 8, 4), np.uint8)
    picture_of[..., 0] = 90
    row = {"image": {"bytes": miniature.encode(picture_of), "path": None}}
    assert picture(row, "image", "official").getpixel((0, 0)) == (90, 0, 0)
    assert picture(row, "image").getpixel((0, 0)) == (255, 255, 255)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(file, "JPEG", exif=exif)
    row = {"image": {"bytes": file.getvalue(), "path": None}}
    assert picture(row, "image", "official").size == (8, 4) and picture(row, "image").size == (4, 8)


def test_condition_and_photograph_of_different_sizes() -> None:
    colours, photo = np.zeros((40, 60, 3), np.uint8), np.full((90, 80, 3), 200, np.uint8)
    pictures = {"control_seg": colours, "image": photo}
    row = {name: {"bytes": miniature.encode(value), "path": None} for name, value in pictures.items()}
    pair = READERS["cocostuff"](row | {"prompt": "a road"}, "cocostuff/0", SourceConfig("cocostuff"))
    assert [side.shape for side in resize_pair(pair, 32)] == [(1, 32, 32, 3), (32, 32, 3)]


def test_edges_of_either_operator() -> None:
    row = {"image": {"bytes": miniature.encode(photos.chelsea()), "path": None}, "text": "a cat"}
    found = {}
    for operator in ("kornia", "cv2"):
        cfg = SourceConfig("multigen_canny", canny=CannyConfig(operator))
        found[operator] = resize_pair(READERS["multigen_canny"](row, "0", cfg), 128)[0][0]
        assert set(np.unique(found[operator])) == {0, 255}
    assert (found["kornia"] != found["cv2"]).any()


def test_pipe_guards_empty_texts_and_odd_removals() -> None:
    row = {VLM: "", CLASS: "Add cat", REF: None}
    assert pipe_texts(row, SourceConfig("pipe")).instructions == ("Add cat",)
    with pytest.raises(BadRow, match=f"{VLM} is empty"):
        pipe_texts(row, SourceConfig("pipe", empty="drop"))
    with pytest.raises(BadRow, match="every instruction column is empty"):
        pipe_texts({VLM: "", CLASS: "", REF: ""}, SourceConfig("pipe"))
    assert pipe_texts({VLM: "Insert 2 birds"}, SourceConfig("pipe")).reversed_instructions == ()


def test_pipe_as_its_authors_read_it() -> None:
    row = {VLM: "Add a cat", CLASS: "", REF: "add the cat", "object_location": "the top left"}
    texts = pipe_texts(row, SourceConfig("pipe", wording="official"))
    assert sorted(set(texts.instructions)) == sorted(
        ["Add a cat", "Add a cat at the top left", "add the cat", "add the cat at the top left"]
    )
    assert sum(text.endswith("left") for text in texts.instructions) / len(texts.instructions) == 0.25


def test_direction_and_wording_come_from_the_draw() -> None:
    texts = Texts(("a", "b"), ("c",), 0.5)
    assert [texts.choose(0.7, w) for w in (0.0, 0.49, 0.5, 0.999)] == [
        (False, "a"), (False, "a"), (False, "b"), (False, "b"),
    ]  # fmt: skip
    assert texts.choose(0.2, 0.9) == (True, "c")
    assert Texts(("a",), (), 1.0).choose(0.0, 0.0) == (False, "a")


def test_label_colours_are_distinct_and_never_black() -> None:
    palette = label_palette()
    assert len({tuple(colour) for colour in palette.tolist()}) == 171
    assert palette.any(axis=1).all()


def test_cocostuff_from_labels(five_sources: dict[str, Path]) -> None:
    overrides = [*paths(five_sources), "data.heldout_samples=5", "data.sources.cocostuff.condition=labels"]
    source = open_sources(config("experiment=editar_xl", *overrides).data)["cocostuff"]
    colours = np.unique(np.asarray(source.pair(0).source).reshape(-1, 3), axis=0)
    allowed = {(0, 0, 0), *map(tuple, label_palette().tolist())}
    assert {tuple(colour) for colour in colours.tolist()} <= allowed


def test_a_missing_source_is_named_with_the_way_out(five_sources: dict[str, Path]) -> None:
    folders = {**five_sources, "pipe": Path("nowhere/pipe")}
    with pytest.raises(DataError, match=r"data\.sources\.pipe: .*nowhere/pipe.*~data\.sources\.pipe"):
        open_sources(config("experiment=editar_xl", *paths(folders), "data.heldout_samples=5").data)
    left = [item for item in paths(five_sources) if "pipe" not in item]
    cfg = config("experiment=editar_xl", *left, "~data.sources.pipe", "data.heldout_samples=4")
    assert "pipe" not in open_sources(cfg.data)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.pipe.wording=poem", "data.sources.pipe.wording=poem is not one of editar, official"),
        ("data.sources.pipe.weight=0", "weight=0 must be positive; drop a source with ~data.sources.pipe"),
        ("data.sources.pipe.path=null", "data.sources.pipe.path is null"),
        ("data.sources.pipe.colour=red", "unknown key"),
        ("data.sources.cocostuff.prompt=draw", "needs the place of the row's text"),
        ("data.build_cache=true", "needs data.cache=FOLDER"),
    ],
)
def test_wrong_settings(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config("experiment=editar_xl", override)


def test_a_folder_of_own_pairs(tmp_path: Path) -> None:
    for name, photo in (("cat.png", photos.chelsea()), ("coffee.jpg", photos.coffee())):
        Image.fromarray(photo).save(tmp_path / name)
    lines = [{"source": "cat.png", "target": "coffee.jpg", "instruction": "make it coffee", "by": "me"}] * 3
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    data = config("data=folder", f"data.sources.folder.path={tmp_path}", "data.heldout_samples=1").data
    source = open_sources(data)["folder"]
    assert len(source) == 2
    assert source.pair(0).texts.instructions == ("make it coffee",)
    (tmp_path / "pairs.jsonl").write_text('{"source": "cat.png"}')
    with pytest.raises(DataError, match=r"line 1: target, instruction missing or not text"):
        Source("folder", data.sources["folder"], data)


def test_a_picture_that_scaling_would_blow_up_is_a_bad_row() -> None:
    content = miniature.encode(np.zeros((1_000_000, 1, 3), np.uint8))
    with pytest.raises(BadRow, match="image: 1x1000000 has one side more than 64 times the other"):
        picture({"image": {"bytes": content, "path": None}}, "image")


def test_own_pairs_with_any_text(tmp_path: Path) -> None:
    listing, words = tmp_path / "pairs.jsonl", "one\u2028two {} {x} \x85é"
    Image.fromarray(photos.chelsea()).save(tmp_path / "cat.png")
    line = json.dumps({"source": "cat.png", "target": "cat.png", "instruction": words}, ensure_ascii=False)
    listing.write_bytes(f"{line}\r\n{line}\n".encode())
    prompt = 'data.sources.folder.prompt="{} {x} {0} }{"'
    data = config("data=folder", f"data.sources.folder.path={tmp_path}", "data.heldout_samples=1", prompt).data
    assert open_sources(data)["folder"].pair(1).texts.instructions == (words + " {x} {0} }{",)
    listing.write_bytes(line.encode("latin-1", "replace"))
    with pytest.raises(DataError, match=r"pairs\.jsonl: not UTF-8 .*; save it as UTF-8"):
        open_sources(data)


def test_missing_pictures_are_named_with_their_line_at_the_start(tmp_path: Path) -> None:
    Image.fromarray(photos.chelsea()).save(tmp_path / "cat.png")
    line = {"source": "cat.png", "target": "cat.png", "instruction": "make it coffee"}
    lines = [json.dumps(line), "", json.dumps({**line, "target": "gone.png"}), json.dumps(line)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    data = config("data=folder", f"data.sources.folder.path={tmp_path}").data
    with pytest.raises(DataError, match=r"pairs\.jsonl line 3: no picture .*/gone\.png; add it or remove the line"):
        open_sources(data)
    lines[-1] = json.dumps({**line, "source": "a" * 300 + ".png"})
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"line 3: .*gone\.png \(2 of 6 pictures are missing\)"):
        open_sources(data)


def test_small_sets_keep_nine_tenths_for_training(tmp_path: Path) -> None:
    def heldout(rows: int, samples: int) -> int:
        folder = miniature.write_pipe(tmp_path / f"pipe_{rows}", rows)
        data = DataConfig(sources={"pipe": SourceConfig("pipe", path=str(folder))}, heldout_samples=samples)
        source = open_sources(data)["pipe"]
        assert len(source) + source.heldout == rows
        return source.heldout

    assert [heldout(40, 256), heldout(39, 256), heldout(40, 3)] == [4, 3, 3]
    assert heldout(4, 256) == 1  # too few for a tenth, but losses and the sample grid need a pair
    with pytest.raises(DataError, match="has 1 rows; 2 are needed, one is held out"):
        heldout(1, 1)


def test_own_pairs_with_further_source_pictures(tmp_path: Path) -> None:
    for i, name in enumerate("abc"):
        Image.new("RGB", (40 + i, 30), (80 * i, 0, 0)).save(tmp_path / f"{name}.png")
    rows = [
        {"source": "a.png", "target": "b.png", "instruction": "x"},
        {"source": "a.png", "references": ["c.png"], "target": "b.png", "instruction": "y"},
    ]
    listing = tmp_path / "pairs.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)))

    def opened(images: int) -> Source:
        sources = {"mine": SourceConfig(path=str(tmp_path))}
        return open_sources(DataConfig(sources=sources, heldout_samples=1, images=images))["mine"]

    shapes = [resize_pair(opened(2).pair(row), 32)[0].shape for row in (0, 1)]
    assert shapes == [(1, 32, 32, 3), (2, 32, 32, 3)]
    with pytest.raises(DataError, match=r"has edits of 2 pictures, this run reads data\.images=1"):
        opened(1)
    rows[1]["references"] = "c.png"
    listing.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="line 2: references must be a list of picture files"):
        opened(2)
    rows[1]["references"] = ["d.png"]
    listing.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"line 2: no picture .*d\.png"):
        opened(2)


@pytest.mark.parametrize(("kind", "structs"), [("seed_unsplash", False), ("multigen_depth", True)])
def test_folders_repacked_by_editar_are_read_as_they_are(kind: str, structs: bool, tmp_path: Path) -> None:
    """`save_to_disk` folders with raw bytes or undecoded image structs, without preparation."""
    folder = miniature.write_repack(tmp_path / "repack", 6, structs=structs, corrupt=(1,))
    data = DataConfig(sources={kind: SourceConfig(kind, path=str(folder))}, heldout_samples=1)
    source = open_sources(data)[kind]
    assert [size.shape for size in resize_pair(source.pair(0), 64)] == [(1, 64, 64, 3), (64, 64, 3)]
    with pytest.raises(BadRow, match="not a readable image"):
        source.pair(1)
