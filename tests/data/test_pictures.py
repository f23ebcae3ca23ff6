"""Pictures for a tokenizer: three kinds of folders, the same draws, and what is wrong with others."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from editar.config import PicturesConfig
from editar.data.pictures import Pictures, PictureStream, random_crop
from editar.data.sample import BadRow
from editar.data.tables import IMAGE
from editar.errors import DataError
from tests.helpers import miniature

PIXELS = [np.full((20 + i, 30, 3), 9 * i, np.uint8) for i in range(8)]


def contents(broken: int | None = None) -> dict[str, bytes]:
    return {f"{i}.png": miniature.encode(pixels, half=i == broken) for i, pixels in enumerate(PIXELS)}


def write_files(folder: Path, broken: int | None = None) -> Path:
    (folder / "deeper").mkdir(parents=True)
    for name, data in contents(broken).items():
        (folder / "deeper" / name).write_bytes(data)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def write_tars(folder: Path, broken: int | None = None) -> Path:
    folder.mkdir()
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for name, data in list(contents(broken).items())[number * 4 : number * 4 + 4]:
                for file, content in ((name, data), (name.replace("png", "txt"), b"a caption")):
                    info = tarfile.TarInfo(file)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def write_table(folder: Path, broken: int | None = None) -> Path:
    rows = [{"image": {"bytes": data, "path": name}} for name, data in contents(broken).items()]
    return miniature.write_parquet(folder, rows, {"image": IMAGE}, 2, "train")


@pytest.mark.parametrize("write", [write_files, write_tars, write_table])
def test_every_kind_of_folder_gives_the_same_pictures(write: Callable[[Path, int], Path], tmp_path: Path) -> None:
    found = Pictures(PicturesConfig(path=str(write(tmp_path / "data", 2))))
    assert len(found) == 8
    for i, pixels in enumerate(PIXELS):
        if i == 2:
            with pytest.raises(BadRow):
                found[i]
            assert found.name(i) in ("deeper/2.png", "0.tar/2.png", "row 2")
        else:
            assert np.array_equal(np.asarray(found[i]), pixels)


def test_draws_leave_the_held_out_pictures_alone(tmp_path: Path) -> None:
    cfg = PicturesConfig(path=str(write_files(tmp_path / "data", broken=1)), heldout_samples=3)
    stream = PictureStream(cfg, 16, seed=4)
    drawn = [stream[draw] for draw in range(20)]
    assert {int(image[0, 0, 0]) // 9 for image, _ in drawn} == {0, 2, 3, 4}
    assert {name for _, replaced in drawn for name, _ in replaced} == {"deeper/1.png"}
    assert all(np.array_equal(stream[draw][0], image) for draw, (image, _) in enumerate(drawn))
    assert stream.heldout_batch(8).shape == (3, 3, 16, 16)


def test_crops_reach_every_side_and_are_mirrored() -> None:
    ramp = np.zeros((40, 60, 3), np.uint8)
    ramp[..., 0] = np.arange(60) * 4
    image = Image.fromarray(ramp)
    left, right = (random_crop(image, 32, [0.0, at, 0.0, 0.9]) for at in (0.0, 0.999))
    assert left.shape == (32, 32, 3) and left[0, 0, 0] < 8 and right[0, -1, 0] > 225
    assert np.array_equal(random_crop(image, 32, [0.0, 0.0, 0.0, 0.1]), left[:, ::-1])
    assert random_crop(image, 32, [0.999, 0.0, 0.0, 0.9])[0, -1, 0] < left[0, -1, 0]


def test_wrong_folders_are_named(tmp_path: Path) -> None:
    def opened(folder: Path) -> Pictures:
        return Pictures(PicturesConfig(path=str(folder)))

    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no such folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no picture, \*\.parquet or \*\.tar in it"):
        opened(tmp_path / "empty")
    write_files(tmp_path / "both")
    write_tars(tmp_path / "both/tars")
    with pytest.raises(DataError, match="holds pictures and tars; give a folder of one kind"):
        opened(tmp_path / "both")
    cut = write_tars(tmp_path / "cut")
    (cut / "1.tar").write_bytes((cut / "1.tar").read_bytes()[:700])
    with pytest.raises(DataError, match=r"1\.tar: not a whole uncompressed tar"):
        opened(cut)
    rows = [{"photo": "x"}] * 2
    with pytest.raises(DataError, match="image"):
        opened(miniature.write_parquet(tmp_path / "table", rows, {"photo": pa.string()}, 1, "train"))
    one = tmp_path / "one"
    one.mkdir()
    (one / "a.png").write_bytes(miniature.encode(PIXELS[0]))
    with pytest.raises(DataError, match="holds one picture"):
        PictureStream(PicturesConfig(path=str(one)), 16, 0)
