"""Miniature copies of the paper's data sets, in the schemas and file layouts people really download.

Pictures come from the nano world; every fourth row is a scikit-image photograph (not square where
the real set is not). Each maker fills `folder` with `rows` rows over `files` input files and returns it.
Options, where they apply: `corrupt` rows carry half an image, `empty` rows no instruction.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, PngImagePlugin

from editar.conditions import colour_labels, depth_condition
from editar.data.nano import scene as ns
from editar.data.nano.world import TASKS, NanoWorld, Plan

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LABELS = pa.list_(pa.list_(pa.uint8()))
# `datasets` 2.x wrote the files on the hub; 4.x spells nested lists otherwise ("List").
OLD_FEATURES: dict[pa.DataType, Any] = {
    IMAGE: {"_type": "Image"},
    LABELS: {"feature": {"feature": {"dtype": "uint8", "_type": "Value"}, "_type": "Sequence"}, "_type": "Sequence"},
    pa.string(): {"dtype": "string", "_type": "Value"},
    pa.list_(pa.string()): {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
    pa.binary(): {"dtype": "binary", "_type": "Value"},
}


def write_pipe(
    folder: Path,
    rows: int,
    *,
    files: int = 2,
    side: int = 64,
    split: str = "train",
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
    row_group: int = 100,
) -> Path:
    """paint-by-inpaint/PIPE. `empty` rows have no wording at all; of the others, every third lacks
    `Instruction_VLM-LLM` and every other one `Instruction_Ref_Dataset`, as in the real set."""
    table: list[dict[str, Any]] = []
    for i in range(rows):
        plan = _plan("add", i)
        without, target = _pair(plan, i, side, side)
        name = plan.target.shapes[plan.index].kind
        table.append(
            {
                "source_img": _struct(encode(without, half=i in set(corrupt))),
                "target_img": _struct(encode(target)),
                "Instruction_VLM-LLM": "" if i in set(empty) or i % 3 == 2 else plan.instruction.capitalize(),
                "Instruction_Class": "" if i in set(empty) else f"Add a {name}",
                "Instruction_Ref_Dataset": "" if i in set(empty) or i % 2 else f"Add {name} in the picture",
                "object_location": "left",
                "target_img_dataset": "COCO",
                "img_id": str(1000 + i),
                "ann_id": str(7000 + i),
            }
        )
    types = {key: IMAGE if key.endswith("_img") else pa.string() for key in table[0]}
    return write_parquet(folder / "data", table, types, files, split, row_group).parent


def write_multigen_depth(
    folder: Path,
    rows: int,
    *,
    files: int = 2,
    side: int = 64,
    split: str = "train",
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
    big_text: Iterable[int] = (),
    row_group: int = 100,
) -> Path:
    """limingcv/MultiGen-20M_depth. `big_text` rows carry a PNG text chunk of 2 MB."""
    table = []
    for i in range(rows):
        plan = _plan("depth", i)
        _, target = _pair(plan, i, side, side * 4 // 3)
        depth = depth_condition(ns.draw_depth(plan.target))
        table.append(
            {
                "image": _struct(encode(target, half=i in set(corrupt), big_text=i in set(big_text))),
                "control_depth": _struct(encode(_resized(depth, target.shape[1], target.shape[0]))),
                "text": "" if i in set(empty) else plan.target.caption,
            }
        )
    types = {"image": IMAGE, "control_depth": IMAGE, "text": pa.string()}
    return write_parquet(folder / "data", table, types, files, split, row_group).parent


def write_cocostuff(
    folder: Path,
    rows: int,
    *,
    files: int = 2,
    side: int = 64,
    split: str = "train",
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
    wrong_size: Iterable[int] = (),
    wrong_ids: Iterable[int] = (),
    row_group: int = 100,
) -> Path:
    """limingcv/Captioned_COCOStuff. Labels are nested lists: 0..170 and 255 in the outer frame.
    `wrong_size` label maps lack a column, `wrong_ids` hold a 200."""
    palette = np.random.default_rng(0).integers(0, 256, (171, 3), np.uint8)
    table = []
    for i in range(rows):
        plan = _plan("segmentation", i)
        _, target = _pair(plan, i, side, side * 4 // 3)
        labels = _resized(ns.draw_labels(plan.target) * 40, target.shape[1], target.shape[0], Image.Resampling.NEAREST)
        labels[[0, -1]] = 255
        labels[:, [0, -1]] = 255
        labels[1, 1] = 200 if i in set(wrong_ids) else 170
        coloured = colour_labels(labels, palette)
        if i in set(wrong_size):
            labels = labels[:, :-1]
        table.append(
            {
                "image": _struct(encode(target, "JPEG", half=i in set(corrupt)), f"{i:012d}.jpg"),
                "prompt": "" if i in set(empty) else plan.target.caption,
                "semantic_seg_map": labels.tolist(),
                "panoptic_seg_map": labels.tolist(),
                "control_seg": _struct(encode(coloured)),
                "image_path": f"train2017/{i:012d}.jpg",
            }
        )
    types = {"image": IMAGE, "prompt": pa.string(), "semantic_seg_map": LABELS, "panoptic_seg_map": LABELS}
    types |= {"control_seg": IMAGE, "image_path": pa.string()}
    return write_parquet(folder / "data", table, types, files, split, row_group).parent


def write_seed(
    folder: Path,
    pairs: int,
    *,
    side: int = 64,
    part_bytes: int = 3_000,
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
    absent: Iterable[int] = (),
    repeated: Iterable[int] = (),
) -> Path:
    """SEED-Data-Edit Part 1, Unsplash: one tar.gz cut at arbitrary bytes and jsonl in two folders.

    Pairs 3k and 3k+1 share their source image; the second half's annotations lie in
    `annotations_GPT4V` with the extra `instruction_ori`. `absent` pairs lack their target in the
    archive, `repeated` pairs are annotated twice.
    """
    root = folder / "auto_editing" / "unsplash"
    lines: list[list[str]] = [[], [], [], []]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        _add(tar, "unsplash_images/README.txt", b"not an image")
        for i in range(pairs):
            plan = _plan("recolour", i)
            source, target = _pair(plan, i, side, side * 4 // 3)
            photo = f"photo-{1579661804513 + i - (i % 3 == 1)}-ca6142cf6c37"
            if i % 3 != 1:
                _add(tar, f"unsplash_images/{photo}_0.jpg", encode(source, "JPEG"))
            if i not in set(absent):
                content = encode(target, "JPEG", half=i in set(corrupt))
                _add(tar, f"unsplash_images/{photo}_{i % 3 + 1}.jpg", content)
            entry = {
                "source_image": f"{photo}_0.jpg",
                "target_image": f"{photo}_{i % 3 + 1}.jpg",
                "instruction": "" if i in set(empty) else plan.instruction,
                "source_caption": plan.source.caption,
                "target_caption": plan.target.caption,
            }
            if i >= pairs // 2:
                entry |= {"instruction_ori": "do it", "score": 0.5}  # type: ignore[dict-item]
            file = 2 * (i >= pairs // 2) + i % 2
            lines[file] += [json.dumps(entry)] * (2 if i in set(repeated) else 1)
    for number, name in enumerate(("annotations", "annotations", "annotations_GPT4V", "annotations_GPT4V")):
        path = root / name / f"split_{number % 2:04d}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(line + "\n" for line in lines[number]))
    whole = gzip.compress(archive.getvalue(), 1, mtime=0)
    (root / "images").mkdir()
    for number, start in enumerate(range(0, len(whole), part_bytes)):
        part = root / "images" / f"unsplash_images.tar.gz.part-{number:02d}"
        part.write_bytes(whole[start : start + part_bytes])
    return folder


def write_repack(
    folder: Path,
    rows: int,
    *,
    files: int = 2,
    side: int = 64,
    structs: bool = False,
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
) -> Path:
    """A `save_to_disk` folder as EditAR's own repacks: with raw bytes columns (Seedx_Unsplash_HF) or,
    with `structs`, undecoded Image structs (MultiGen-20M_depth_HF: image, control_depth, text)."""
    table: list[dict[str, Any]] = []
    for i in range(rows):
        plan = _plan("depth" if structs else "recolour", i)
        source, target = _pair(plan, i, side, side)
        text = "" if i in set(empty) else plan.instruction
        if structs:
            depth = depth_condition(ns.draw_depth(plan.target))
            images = {"image": target, "control_depth": _resized(depth, side, side)}
            row = {key: _struct(encode(value, half=i in set(corrupt))) for key, value in images.items()}
            table.append(row | {"text": text})
        else:
            row = {"source_caption": plan.source.caption, "source_image": encode(source, half=i in set(corrupt))}
            row |= {"instruction": text, "target_caption": plan.target.caption, "target_image": encode(target)}
            table.append(row)
    kinds = {bytes: pa.binary(), str: pa.string(), dict: IMAGE}
    types = {key: kinds[type(value)] for key, value in table[0].items()}
    schema = _schema(types)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data-{n:05d}-of-{files:05d}.arrow" for n in range(files)]
    for n, name in enumerate(names):
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            part = pa.Table.from_pylist(_part(table, n, files), schema)
            writer.write_table(part, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "16f95912fd0d0ace", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    features = {key: OLD_FEATURES[type] for key, type in types.items()}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


# --- pieces ---------------------------------------------------------------------------------------


def write_parquet(
    folder: Path,
    rows: list[dict[str, Any]],
    types: dict[str, pa.DataType],
    files: int,
    split: str,
    row_group: int = 100,
) -> Path:
    """Rows as `SPLIT-00000-of-NNNNN-0123456789abcdef.parquet`..., with the hub's schema metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    schema = _schema(types)
    for n in range(files):
        path = folder / f"{split}-{n:05d}-of-{files:05d}-0123456789abcdef.parquet"
        pq.write_table(pa.Table.from_pylist(_part(rows, n, files), schema), path, row_group_size=row_group)
    return folder


def encode(image: np.ndarray, format: str = "PNG", half: bool = False, big_text: bool = False) -> bytes:
    """(H, W, 3) uint8 -> file content; `half` cuts it in the middle."""
    buffer, extra = io.BytesIO(), {}
    if big_text:
        extra["pnginfo"] = PngImagePlugin.PngInfo()
        extra["pnginfo"].add_text("prompt", "long " * 400_000, zip=True)
    Image.fromarray(image).save(buffer, format, **extra)
    content = buffer.getvalue()
    return content[: len(content) // 2] if half else content


def _plan(task: str, row: int) -> Plan:
    index = len(TASKS) * row + TASKS.index(task)
    return NanoWorld("train", index + 1).plan(index)


def _pair(plan: Plan, row: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Source and target (side, side, 3) uint8; every fourth row a photograph (height, width, 3) whose
    source lacks its middle."""
    if row % 4 != 3:
        return _resized(ns.draw(plan.source), height, height), _resized(ns.draw(plan.target), height, height)
    names = tuple(ns.PHOTOS)
    target = _resized(ns.photo(names[row // 4 % len(names)]), width, height)
    source = target.copy()
    source[height // 4 : height // 2, width // 4 : width // 2] = 127
    return source, target


def _resized(
    image: np.ndarray, width: int, height: int, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((width, height), resample))


def _struct(content: bytes, path: str | None = None) -> dict[str, Any]:
    return {"bytes": content, "path": path}


def _part(table: list[dict[str, Any]], number: int, files: int) -> list[dict[str, Any]]:
    """The rows of one of `files` files: contiguous, as near equal as can be."""
    return table[number * len(table) // files : (number + 1) * len(table) // files]


def _schema(types: dict[str, pa.DataType]) -> pa.Schema:
    features = {key: OLD_FEATURES[type] for key, type in types.items()}
    return pa.schema(types, metadata={"huggingface": json.dumps({"info": {"features": features}})})


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _write_edits(
    folder: Path, rows: int, source: str, target: str, words: str, split: str, corrupt: Iterable[int], more: Any
) -> Path:
    """A parquet set of one text and two pictures a row; `more(i, text)` gives the other columns and may replace the
    text."""
    table = []
    for i in range(rows):
        plan = _plan("recolour", i)
        before, after = _pair(plan, i, 64, 96)
        pictures = {source: _struct(encode(before)), target: _struct(encode(after, half=i in set(corrupt)))}
        table.append(pictures | {words: plan.instruction} | more(i, plan.instruction))
    kinds = {dict: IMAGE, str: pa.string(), list: pa.list_(pa.string())}
    types = {name: kinds[type(value)] for name, value in table[0].items()}
    return write_parquet(folder / "data", table, types, 2, split).parent


def write_magicbrush(folder: Path, rows: int, *, corrupt: Iterable[int] = (), empty: Iterable[int] = ()) -> Path:
    """osunlp/MagicBrush; its masks are left out, as the reader does."""

    def more(i: int, text: str) -> dict[str, Any]:
        return {"img_id": str(300 + i), "instruction": "" if i in set(empty) else text}

    return _write_edits(folder, rows, "source_img", "target_img", "instruction", "train", corrupt, more)


def write_ultraedit(folder: Path, rows: int, *, corrupt: Iterable[int] = (), empty: Iterable[int] = ()) -> Path:
    """BleachNick/UltraEdit_500k, whose one split is named FreeForm."""

    def more(i: int, text: str) -> dict[str, Any]:
        captions = {"source_caption": "before", "target_caption": "after"}
        return captions | {"edit_prompt": " " if i in set(empty) else text}

    return _write_edits(folder, rows, "source_image", "edited_image", "edit_prompt", "FreeForm", corrupt, more)


def write_omniedit(folder: Path, rows: int, *, corrupt: Iterable[int] = (), empty: Iterable[int] = ()) -> Path:
    """TIGER-Lab/OmniEdit-Filtered-1.2M: a list of one to three wordings."""

    def more(i: int, text: str) -> dict[str, Any]:
        texts = [] if i in set(empty) else [text, f"please {text}", f"{text} now"][: 1 + i % 3]
        return {"omni_edit_id": f"task_{i}", "task": "swap", "edited_prompt_list": texts}

    return _write_edits(folder, rows, "src_img", "edited_img", "edited_prompt_list", "train", corrupt, more)


def write_webdataset(
    folder: Path,
    rows: int,
    *,
    corrupt: Iterable[int] = (),
    empty: Iterable[int] = (),
    lacking: dict[int, str] | None = None,
    texts: dict[int, bytes] | None = None,
) -> Path:
    """Two tars of KEY.src.jpg, KEY.tgt.png and KEY.txt; pair i lacks the part `lacking[i]`, or has `texts[i]`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        with tarfile.open(folder / f"pairs-{number:06d}.tar", "w") as tar:
            for i in _part(list(range(rows)), number, 2):
                plan = _plan("recolour", i)
                before, after = _pair(plan, i, 64, 96)
                parts = {
                    "src.jpg": encode(before, "JPEG"),
                    "tgt.png": encode(after, half=i in set(corrupt)),
                    "txt": b"" if i in set(empty) else (texts or {}).get(i, plan.instruction.encode()),
                    "json": b"{}",
                }
                for name, content in parts.items():
                    if name.split(".")[0] != (lacking or {}).get(i):
                        _add(tar, f"./{number}/{i:06d}.{name}", content)
    return folder
