"""The columns of Table 2 that compare a picture with its condition, for batches; FID is `editar.metrics.fid`'s."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from editar.config import NetworkSources
from editar.evaluation.translation import protocol
from editar.evaluation.translation.networks import DepthNetwork, load_segmenter
from editar.evaluation.translation.protocol import Confusion, TranslationProtocol, depth_map, edge_maps
from editar.metrics.networks import Missing, load_or_leave
from editar.tables.scores import Column

ROW_COLUMNS = {
    "depth": [Column("depth_rmse", "Depth RMSE", "grey levels", "lower")],
    "canny": [
        Column("canny_ms_ssim", "Edges, multi-scale SSIM", "x1e2", "higher"),
        Column("canny_ssim", "Edges, SSIM", "x1e2", "higher"),
        Column("canny_f1", "Edges, F1", "x1e2", "higher"),
    ],
    "cocostuff": [Column("cocostuff_accuracy", "Pixel accuracy of the picture", "x1e2", "higher")],
}
WHOLE_COLUMNS = {
    "depth": [],
    "canny": [],
    "cocostuff": [
        Column("cocostuff_miou", "mIoU", "x1e2", "higher"),
        Column("cocostuff_macc", "Mean class accuracy", "x1e2", "higher"),
    ],
}


def fid_column(task: str) -> Column:
    return Column(f"{task}_fid", "FID", "FID", "lower")


FID = {task: {"inception": (fid_column(task).name,)} for task in ROW_COLUMNS}


class TranslationMetrics:
    """Scores one task's prompts. mIoU belongs to all pictures together: `begin` forgets them, `whole` reads it."""

    def __init__(self, task: str, rules: TranslationProtocol, sources: NetworkSources, device: torch.device) -> None:
        """With the task's network if its file is here; `missing` says what to fetch. Raises CheckpointError or
        ConfigError."""
        self.task, self.rules, self.device, self.missing = task, rules, device, list[Missing]()
        self.columns = ROW_COLUMNS[task] + WHOLE_COLUMNS[task]
        self.network: Any = None
        if task != "canny":
            name, load = ("depth", DepthNetwork.load) if task == "depth" else ("segmenter", load_segmenter)
            names = tuple(column.name for column in self.columns)
            self.network, missing = load_or_leave(name, getattr(sources, name), names, partial(load, device=device))
            if missing:
                self.missing, self.columns = [missing], []
        self.begin()

    def begin(self) -> None:
        """Before each method's pictures."""
        self.confusion = Confusion()

    def __call__(self, labels: np.ndarray, pictures: np.ndarray) -> list[dict[str, float]]:
        """labels (P, 512, 512) uint8, pictures (P, G, 512, 512, 3) uint8: G results of each prompt, or for `canny`
        their edges (P, G, 512, 512), 0 and 255.

        Returns one row per prompt in the paper's units, means over its G pictures.
        """
        if not self.columns:
            return [{} for _ in labels]
        return getattr(self, f"_{self.task}")(labels, pictures)

    def whole(self) -> dict[str, float]:
        """Numbers of all pictures since `begin`."""
        if self.task != "cocostuff" or not self.columns:
            return {}
        scores = self.confusion.scores()
        return {"cocostuff_miou": 100 * scores.miou, "cocostuff_macc": 100 * scores.macc}

    def _depth(self, labels: np.ndarray, pictures: np.ndarray) -> list[dict[str, float]]:
        group = pictures.shape[1]
        depths = self.network(pictures.reshape(-1, *pictures.shape[2:]))
        predicted = np.stack([depth_map(depth, self.rules.depth) for depth in depths])
        errors = protocol.depth_rmse(predicted, labels.repeat(group, 0)).reshape(-1, group)
        return [{"depth_rmse": float(error)} for error in errors.mean(1)]

    def _canny(self, labels: np.ndarray, pictures: np.ndarray) -> list[dict[str, float]]:
        prompts, shape = len(labels), pictures.shape[:4]
        if pictures.ndim == 4:
            found = torch.from_numpy(pictures).to(self.device) / 255
        else:
            found = edge_maps(pictures.reshape(-1, *pictures.shape[2:]), self.rules, self.device).view(shape)
        true = torch.from_numpy(labels).to(self.device) / 255
        scores = protocol.edge_scores(found, true, self.rules.psnr_cap)
        names = ("ms_ssim", "ssim", "f1")
        return [{f"canny_{name}": 100 * scores[name][i].item() for name in names} for i in range(prompts)]

    def _cocostuff(self, labels: np.ndarray, pictures: np.ndarray) -> list[dict[str, float]]:
        rows = []
        for label, group in zip(labels, pictures, strict=True):
            predicted, true = self.network(group), np.stack([label] * len(group))
            self.confusion.update(predicted, true)
            known = true != self.confusion.ignore
            hits = (predicted == true)[known]
            rows.append({"cocostuff_accuracy": 100 * float(hits.mean()) if hits.size else float("nan")})
        return rows
