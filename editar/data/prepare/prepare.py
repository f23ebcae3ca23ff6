"""A downloaded data set -> a validated folder: whichever of the two kinds of download it is."""

from __future__ import annotations

from typing import Any

from editar.data.prepare import folder as out
from editar.data.prepare.parquet import LAYOUTS, prepare_files
from editar.data.prepare.request import Request
from editar.data.prepare.seed import prepare_seed
from editar.data.tables import open_table
from editar.errors import DataError

SOURCES = (*LAYOUTS, "seed_unsplash")


def prepare(request: Request) -> dict[str, Any]:
    """Make `request.folder`, or go on making it -> its manifest.

    Raises DataError for unusable input, a folder made from something else, a full disk, and when no row was kept.
    """
    if request.source not in SOURCES:
        raise DataError(f"{request.source}: no such source; known: {', '.join(SOURCES)}")
    for option in ("limit", "rows_per_shard"):
        if (value := getattr(request, option)) is not None and value < 1:
            raise DataError(f"--{option.replace('_', '-')} {value} must be at least 1")
    if request.allow_truncated and request.source != "seed_unsplash":
        raise DataError(f"--allow-truncated is of seed_unsplash; leave it out for {request.source}")
    if request.source == "seed_unsplash" and request.split != "train":
        raise DataError(f"--split {request.split}: seed_unsplash has no splits; leave it out")
    if request.workers < 0:
        raise DataError(f"--workers {request.workers} must be at least 0 (all cores)")
    with out.only_one(request.folder):
        manifest = prepare_seed(request) if request.source == "seed_unsplash" else prepare_files(request)
    open_table(request.folder)  # refuses a folder without rows
    return manifest
