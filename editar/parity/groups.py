"""Every group of stored numbers found in a folder, run one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch

from editar.errors import CheckpointError, ConfigError, DataError, ImageError
from editar.parity import gpt, pie, preprocess, release, sampling, translation, vq
from editar.parity.checks import BFLOAT16, FLOAT32, Check, Golden, GoldenError, Skipped

Line = Check | Skipped


# A new group joins here: the folder's name and its module, whose `files(golden)` names what must be there and whose
# `run(golden)` yields the checks.
GROUPS: dict[str, ModuleType] = {
    "gpt": gpt,
    "release_ckpt": release,
    "vq": vq,
    "preprocess": preprocess,
    "sampling": sampling,
    "pie": pie,
    "translation": translation,
}


def run_all(root: Path, device: torch.device, dtype: torch.dtype) -> Iterator[Line]:
    """Checks of all groups under `root` as they finish. Raises GoldenError where there is none."""
    if not root.is_dir():
        raise GoldenError(f"{root}: no such folder")
    found = sorted(folder.name for folder in root.iterdir() if folder.is_dir())
    if not set(found) & set(GROUPS):
        raise GoldenError(f"{root}: holds none of the folders {', '.join(GROUPS)}")
    for name in [*GROUPS, *(name for name in found if name not in GROUPS)]:
        if name not in GROUPS:
            yield Skipped(name, "not supported yet")
        elif name in found:
            tolerance = FLOAT32 if dtype == torch.float32 else BFLOAT16
            yield from run_group(GROUPS[name], Golden(root / name, device, dtype, tolerance))


def run_group(group: ModuleType, golden: Golden) -> Iterator[Line]:
    """One group's checks; what keeps it from finishing is one failed check that says so."""
    missing = [name for name in group.files(golden) if not (golden.folder / name).is_file()]
    if missing:
        yield Check(f"{golden.folder.name}: files", float("inf"), 0.0, "differing", f"missing: {', '.join(missing)}")
        return
    # TF32 convolutions (cuDNN's default) are 1000 times coarser than the float32 tolerances.
    with torch.backends.cudnn.flags(allow_tf32=False):
        try:
            yield from group.run(golden)
        except (GoldenError, CheckpointError, ConfigError, DataError, ImageError) as error:
            yield Check(f"{golden.folder.name}: unfinished", float("inf"), 0.0, "differing", str(error))
