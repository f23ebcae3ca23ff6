"""Table 2's metrics on stored maps: depth RMSE, edge scores, segmentation. No network is involved.

Always float32, whatever dtype was asked; edge scores on the device under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from editar.evaluation.translation.protocol import PROTOCOLS, Confusion, depth_rmse, edge_scores
from editar.parity.checks import Check, Entries, Golden, Skipped

GROUPS = PROTOCOLS["controlnet++"].images_per_prompt
CAP = PROTOCOLS["controlnet++"].psnr_cap
TOLERANCE = 1e-4  # relative


def files(golden: Golden) -> list[str]:
    named = ["expected.json"]
    if (golden.folder / "expected.json").is_file():
        stored = golden.json("expected.json")
        for task, entry in (("depth", "rmse_per_image_per_group"), ("edge", "per_sample")):
            for id in stored[task][entry]:
                named += [f"{task}/annotations/{id}.png", *predictions(task, id)]
    return named


def predictions(task: str, id: str) -> list[str]:
    return [f"{task}/images/group_{group}/{id}_{task}.png" for group in range(GROUPS)]


def run(golden: Golden) -> Iterator[Check | Skipped]:
    stored = golden.json("expected.json")
    yield from check_depth(golden, stored["depth"])
    yield from check_edges(golden, stored["edge"])
    yield from check_segmentation(golden, stored["seg"])


def grey(path: Path) -> np.ndarray:
    """(H, W) uint8, read as the reference does: any mode to "L"."""
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def read_maps(golden: Golden, task: str, ids: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """-> predictions (P, 4, H, W) and labels (P, H, W), uint8."""
    found = np.array([[grey(golden.path(name)) for name in predictions(task, id)] for id in ids])
    return found, np.array([grey(golden.path(f"{task}/annotations/{id}.png")) for id in ids])


def close(golden: Golden, name: str, got: object, stored: object) -> Check:
    return golden.compare("elements", name, got, stored, TOLERANCE)


def check_depth(golden: Golden, stored: Entries) -> Iterator[Check]:
    expected = stored["rmse_per_image_per_group"]
    ids = list(expected)
    predicted, labels = read_maps(golden, "depth", ids)
    rmse = np.stack([depth_rmse(maps, labels[[row] * GROUPS]) for row, maps in enumerate(predicted)])
    for row, id in enumerate(ids):
        yield close(golden, f"depth {id}, four pictures", rmse[row], expected[id])
    yield close(golden, "depth, first picture of each prompt", rmse[:, 0].mean(), stored["mean_rmse_group_0_only"])
    yield close(golden, "depth, all pictures", rmse.mean(), stored["mean_rmse_all_groups"])


def check_edges(golden: Golden, stored: Entries) -> Iterator[Check]:
    ids = list(stored["per_sample"])
    predicted, labels = (torch.from_numpy(maps).to(golden.device) / 255 for maps in read_maps(golden, "edge", ids))
    together = edge_scores(predicted, labels, CAP)
    alone = [edge_scores(predicted[:, group : group + 1], labels) for group in range(GROUPS)]
    ours = {"f1": "f1", "ssim": "ms_ssim", "psnr": "psnr"}  # "ssim" is multi-scale there
    single = {"f1": "f1", "ms_ssim": "ms_ssim", "single_scale_ssim": "ssim"}
    for row, id in enumerate(ids):
        entry = stored["per_sample"][id]
        for theirs, name in ours.items():
            value = entry["reference_4_groups_together"][theirs]
            yield close(golden, f"edges {id} {theirs}, four together", together[name][row], value)
        for theirs, name in single.items():
            values = [group[theirs] for group in entry["per_group"]]
            yield close(golden, f"edges {id} {theirs}, one by one", [group[name][row] for group in alone], values)
    for theirs, name in ours.items():
        yield close(golden, f"edges mean {theirs}", together[name].double().mean(), stored["mean"][theirs])
    for theirs, name in single.items():
        mean = alone[0][name].double().mean()
        yield close(golden, f"edges mean {theirs}, first pictures", mean, stored["mean_group_0_only"][theirs])


def check_segmentation(golden: Golden, stored: Entries) -> Iterator[Check]:
    labels = sorted((golden.folder / "seg").glob("label_*.png"))
    for reduce in (False, True):
        title = "segmentation without zero label" if reduce else "segmentation"
        expected = stored["reduce_zero_label_variant"] if reduce else stored
        confusion = Confusion(stored["num_classes"], stored["ignore_index"], reduce)
        for path in labels:
            confusion.update(grey(path.with_name(path.name.replace("label", "pred"))), grey(path))
        scores = confusion.scores()
        yield golden.identical(f"{title} confusion", confusion.matrix, expected["confusion_rows_label_cols_pred"])
        yield close(golden, f"{title} IoU", scores.iou, np.array(expected["iou_per_class"], float))  # null -> NaN
        yield close(golden, f"{title} mIoU", scores.miou, expected["miou"])
        yield close(golden, f"{title} aAcc", scores.aacc, expected["aacc"])
        if "macc" in expected:
            yield close(golden, f"{title} accuracy", scores.accuracy, np.array(expected["acc_per_class"], float))
            yield close(golden, f"{title} mAcc", scores.macc, expected["macc"])
