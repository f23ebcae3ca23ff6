"""What reports that open from disk share: page templates, plots and pictures as data URIs."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from PIL import Image

from editar.images import encode_image

PANELS_PER_LINE = 4
Plot = dict[str, str]  # title, note, data (a PNG's URI)
Point = tuple[float, float, float]  # a value and its interval, all finite or NaN


def page_template(name: str) -> Template:
    """A template of this folder; what it is given is escaped unless it is `Markup`."""
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def picture_uri(picture: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> str:
    """`options` are Pillow's for that format."""
    return data_uri(encode_image(picture, format, **options), format)


def data_uri(content: bytes, format: str) -> str:
    return f"data:image/{format.lower()};base64,{base64.b64encode(content).decode()}"


def load_pyplot() -> Any:
    """matplotlib.pyplot, which draws into files, whatever the environment says."""
    os.environ["MPLBACKEND"] = "Agg"
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def new_figure(panels: int = 1) -> tuple[Any, list[Any]]:
    """A figure and its axes: one wide panel, or several in lines of at most four."""
    pyplot = load_pyplot()
    columns = min(panels, PANELS_PER_LINE)
    lines = math.ceil(panels / columns)
    size = (9.0, 3.2) if panels == 1 else (2.75 * columns, 2.5 * lines)
    figure, axes = pyplot.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False)
    for unused in axes.flat[panels:]:
        unused.set_axis_off()
    return figure, list(axes.flat[:panels])


def to_plot(figure: Any, title: str, note: str) -> Plot:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return {"title": title, "note": note, "data": data_uri(buffer.getvalue(), "PNG")}


def plain(text: str) -> str:
    """Text from a file as a label: matplotlib would read `$` as mathematics and hide a leading `_`."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[Point]]) -> None:
    """One bar with whiskers per group and series; series[name][i] belongs to groups[i]."""
    width = 0.8 / len(series)
    for i, (name, points) in enumerate(series.items()):
        positions = np.arange(len(groups)) + i * width
        heights = [value for value, _, _ in points]
        axes.bar(positions, heights, width, yerr=whiskers(points), capsize=2, label=plain(name))
    axes.set_xticks(np.arange(len(groups)) + 0.4 - width / 2, [plain(group) for group in groups])


def whiskers(points: Sequence[Point]) -> np.ndarray:
    """(2, N) distances down and up to the interval's ends; 0 where there is none."""
    ends = [(value - low, high - value) for value, low, high in points]
    return np.nan_to_num(np.array(ends).T).clip(0)


def legend_above(figure: Any, axes: Any) -> None:
    """Outside of the panels, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(labels)), frameon=False)
