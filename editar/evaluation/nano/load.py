"""What `editar.eval benchmark=nano` wrote, read as an evaluation like those of the public benchmarks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from editar.errors import BenchmarkError
from editar.evaluation.nano.scoring import Rate
from editar.tables.scores import Column, Evaluation, MethodScores
from editar.tables.statistics import Mean

NANO_FILE = "metrics.json"
COLUMNS = (
    Column("success", "Success", "%", "higher"),
    Column("background_psnr", "Background PSNR", "dB", "higher"),
)


class NanoEvaluation(Evaluation):
    """Success gets the Wilson interval of `Rate`: the bootstrap knows no doubt about 3 of 3."""

    def means(self, method: MethodScores) -> dict[str, Mean]:
        return _with_wilson(super().means(method), method.rows)

    def means_by(self, method: MethodScores, title: str) -> dict[str, dict[str, Mean]]:
        members: dict[str, list[dict[str, Any]]] = {}
        for row, group in zip(method.rows, method.groups[title], strict=True):
            members.setdefault(group, []).append(row)
        return {group: _with_wilson(found, members[group]) for group, found in super().means_by(method, title).items()}


def _with_wilson(means: dict[str, Mean], rows: Sequence[dict[str, Any]]) -> dict[str, Mean]:
    low, high = Rate(sum(row["success"] > 0 for row in rows), len(rows)).interval
    return means | {"success": replace(means["success"], low=low, high=high)}


def load_nano(folder: Path) -> Evaluation:
    """A folder of `editar.eval benchmark=nano` as an evaluation of one method, called like the folder."""
    file = folder / NANO_FILE
    try:
        raw = json.loads(file.read_text())
        rows = [
            {
                "id": row["id"],
                "instruction": row["instruction"],
                "source": "",  # drawn when it is shown
                "result": str(folder / "images" / f"{row['id']}.png"),
                "success": 100.0 * (row["outcome"] == "success"),
                "background_psnr": math.nan if row["background_psnr"] is None else row["background_psnr"],
            }
            for row in raw["rows"]
        ]
        made = {
            "weights_sha256": raw["weights_sha256"],
            "sampling": {key: value for key, value in raw["sampling"].items() if key != "batch_size"},
            "shuffled_instructions": raw["shuffled_instructions"],
            "data_seed": raw["data_seed"],
        }
        groups = {"task": [row["task"] for row in raw["rows"]]}
        method = MethodScores(folder.resolve().name, str(folder / "images"), rows, groups, generated_with=made)
        return NanoEvaluation("nano", raw["protocol"], "", list(COLUMNS), [method])
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(f"{file}: not a {NANO_FILE} of this version ({error!r}); run editar.eval again") from None
