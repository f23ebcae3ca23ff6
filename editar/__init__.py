"""EditAR: image editing and translation as next-token prediction.

`editar.EditPipeline` edits pictures from Python; it is imported when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from editar.sampling.pipeline import EditPipeline

__all__ = ["EditPipeline"]


def __getattr__(name: str) -> Any:
    if name == "EditPipeline":
        from editar.sampling.pipeline import EditPipeline

        return EditPipeline
    raise AttributeError(f"module 'editar' has no attribute {name!r}")
