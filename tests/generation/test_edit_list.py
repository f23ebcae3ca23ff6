"""Many edits in one command, in a folder that a second start goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from editar.config import EditConfig
from editar.edit import edit
from editar.errors import ConfigError, DataError, ImageError
from editar.runtime.entry import load_config
from editar.sampling.pipeline import EditPipeline


def picture(seed: int, width: int = 90, height: int = 50) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        picture(i).save(folder / f"photo_{i}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def config(run: Path, photos: Path, *more: str) -> EditConfig:
    return load_config(EditConfig, "edit", [f"checkpoint={run}", f"output={photos.parent / 'out'}", *more])


def folder_config(run: Path, photos: Path, *more: str) -> EditConfig:
    return config(run, photos, f"image={photos}", "instruction=remove the star", *more)


def test_a_folder_is_edited_and_gone_on_with(tiny_run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = edit(folder_config(tiny_run, photos))
    assert [file.name for file in files] == ["photo_0.png", "photo_1.png", "photo_2.png"]
    (alone,) = EditPipeline.from_pretrained(tiny_run)(photos / "photo_1.png", "remove the star")
    assert np.abs(np.asarray(Image.open(files[1])).astype(int) - np.asarray(alone)).max() <= 1
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}
    files[0].unlink()
    files[2].write_bytes(files[2].read_bytes()[:500])  # cut short
    edit(folder_config(tiny_run, photos))
    assert "1 of 3 edits are there already" in capsys.readouterr().err
    assert files[1].stat().st_mtime_ns == before[files[1]][0]
    assert all(file.read_bytes() == before[file][1] for file in files)


def test_results_of_something_else_are_not_replaced_unasked(tiny_run: Path, photos: Path) -> None:
    first = edit(folder_config(tiny_run, photos))
    for change in ("instruction=add a star", "fit=square", "+sampling.seed=5"):
        with pytest.raises(ConfigError, match=r"photo_0\.png was made from something else"):
            edit(folder_config(tiny_run, photos, change))
    picture(9).save(photos / "photo_1.png")  # another picture under the name
    with pytest.raises(ConfigError, match=r"photo_1\.png was made from something else"):
        edit(folder_config(tiny_run, photos))
    old = first[1].read_bytes()
    edit(folder_config(tiny_run, photos, "overwrite=true"))
    assert first[1].read_bytes() != old


def test_a_damaged_picture_is_named_and_the_rest_goes_on(tiny_run: Path, photos: Path) -> None:
    (photos / "photo_1.png").write_text("<html>")
    with pytest.raises(ImageError, match=r"1 of 3 pictures were left out: .*photo_1\.png: not a readable image"):
        edit(folder_config(tiny_run, photos))
    assert sorted(file.name for file in (photos.parent / "out").iterdir()) == ["photo_0.png", "photo_2.png"]


def test_a_list_has_instructions_and_masks_of_its_own(tiny_run: Path, photos: Path) -> None:
    mask = np.zeros((50, 90), np.uint8)
    mask[20:30, 40:50] = 255
    Image.fromarray(mask).save(photos / "mask.png")
    rows = [
        {"image": "photo_0.png", "instruction": "remove the star"},
        {"image": "photo_0.png", "instruction": "add a red circle", "mask": "mask.png"},
        {"image": "photo_1.png", "instruction": "add a red circle", "mask": "photo_2.png"},
    ]
    Image.new("L", (7, 7)).save(photos / "photo_2.png")
    listing = photos / "edits.jsonl"
    listing.write_text("\n".join(map(json.dumps, rows)) + "\n")
    with pytest.raises(ImageError, match=r"1 of 3 pictures were left out: .*photo_1\.png: the mask is 7x7"):
        edit(config(tiny_run, photos, f"edits={listing}", "num_samples=2"))
    made = sorted(file.name for file in (photos.parent / "out").iterdir())
    assert made == [f"000{n}_photo_0_{i}.png" for n in (1, 2) for i in (0, 1)]
    masked = np.asarray(Image.open(photos.parent / "out" / made[2]))
    assert np.array_equal(masked[:, :15], np.asarray(picture(0))[:, :15])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: not JSON"),
        ('{"image": "a.png"}', "line 1: needs image and instruction as texts"),
        ('{"image": "a.png", "instruction": " "}', "line 1: needs image and instruction as texts"),
        (
            '{"image": "a.png", "instruction": "x", "size": 3}',
            "line 1: unknown size; known are image, instruction, mask",
        ),
        ("\n", "no edits in this file"),
    ],
)
def test_damaged_lists_are_named(tiny_run: Path, photos: Path, line: str, message: str) -> None:
    (photos / "edits.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        edit(config(tiny_run, photos, f"edits={photos / 'edits.jsonl'}"))


def test_what_cannot_be_many_edits_is_named(tiny_run: Path, photos: Path) -> None:
    for given, message in (
        ([], "image is missing; give image=FILE, a folder, image=null, or edits=FILE.jsonl"),
        (["image=a.png", "edits=b.jsonl"], "leave out image="),
        ([f"image={photos}"], "instruction is empty"),
    ):
        with pytest.raises(ConfigError, match=message):
            config(tiny_run, photos, *given)
    with pytest.raises(ConfigError, match="many edits go into a folder"):
        edit(folder_config(tiny_run, photos, f"output={photos.parent / 'out.png'}"))
    with pytest.raises(ConfigError, match="a mask belongs to one picture"):
        edit(folder_config(tiny_run, photos, "mask=m.png"))
    picture(4).save(photos / "photo_0.bmp")
    with pytest.raises(DataError, match=r"would both make .*photo_0\.png; rename one"):
        edit(folder_config(tiny_run, photos))
    (photos.parent / "empty").mkdir()
    with pytest.raises(DataError, match="empty: no pictures in this folder"):
        edit(config(tiny_run, photos, f"image={photos.parent / 'empty'}", "instruction=x"))
