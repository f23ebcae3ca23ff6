"""Draws docs/architecture.png: the sequence, the losses and the rotary grid.

    python docs/draw_architecture.py

The pictures in it are a sample of the nano world, so nothing is loaded.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from editar.data.nano.world import NanoWorld

OUT = Path(__file__).with_name("architecture.png")
SOURCE, TEXT, TARGET, GPT, FROZEN, LOSS = "#8ecae6", "#ffd27f", "#9ad29a", "#cfc4e8", "#e4e4e4", "#f3a6a0"
GREY = "#555555"
SAMPLE = 2  # of the held-out scenes
NO_PLACE = """Text has no place in the grid. A zero row
makes its queries and keys vanish, so text
is averaged and never selected."""
CELL = 5.8  # width of one position of the sequence; a segment is drawn with five


def main() -> None:
    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 11})
    figure = plt.figure(figsize=(10, 9), dpi=150)
    draw_model(figure.add_axes((0, 0, 1, 1)))
    draw_grid(figure.add_axes((0.02, 0.53, 0.35, 0.46)))
    figure.savefig(OUT, facecolor="white")
    print(OUT)


def draw_model(ax: Axes) -> None:
    """From the pictures at the bottom to the losses at the top, in per cent of the figure."""
    ax.set(xlim=(0, 100), ylim=(0, 100))
    ax.axis("off")
    sample, segment = NanoWorld("heldout", SAMPLE + 1)[SAMPLE], 5 * CELL
    left = [2 + index * segment for index in range(3)]
    middle = [x + segment / 2 for x in left]

    # What goes in.
    picture(ax, sample.source, middle[0], "source image")
    picture(ax, sample.target, middle[2], "target image")
    ax.text(middle[1], 11, f"“{sample.instruction}”", ha="center", va="center", style="italic")
    ax.text(middle[1], 1.6, "instruction", ha="center", va="center", color=GREY)
    for x, encoder in zip(middle, ("VQ encoder", "T5 encoder", "VQ encoder"), strict=True):
        arrow(ax, (x, 18.5), (x, 21.5))
        box(ax, x - 11, 21.5, 22, 5, f"{encoder} (frozen)", FROZEN)
        arrow(ax, (x, 26.5), (x, 29.5))

    # The sequence, and the transformer over it.
    parts = ((SOURCE, "s"), (TEXT, "t"), (TARGET, "c"))
    titles = ("N source codes", "L text embeddings", "N target codes")
    for x, (colour, name), title in zip(left, parts, titles, strict=True):
        last = "L" if name == "t" else "N"
        cells(ax, x, 29.5, colour, [f"${name}_0$", f"${name}_1$", "…", "…", f"${name}_{{{last}-1}}$"])
        ax.text(x + segment / 2, 36.2, title, ha="center", va="center", color=GREY)
    for x in middle:
        arrow(ax, (x, 37.8), (x, 40.5))
    box(ax, 2, 40.5, 3 * segment, 6, "GPT: a causal transformer over the whole sequence", GPT, 13)

    # What comes out, above the position that says it: one place to the left of the code that is read there.
    first = left[2] - CELL
    cells(ax, first, 51.5, "white", ["$h_0$", "$h_1$", "…", "…", "$h_{N-1}$"], "#777777")
    for index in range(5):
        arrow(ax, (first + (index + 0.5) * CELL, 46.5), (first + (index + 0.5) * CELL, 51.5))
    ax.text(first + segment + 1, 54.2, "hidden states:\n$h_j$ predicts $c_j$", va="center", fontsize=10, color=GREY)
    box(ax, 41, 64, 22, 7, "output layer\n(logits)", GPT)
    box(ax, 67, 64, 22, 7, "alignment convolution\n2 x 2, stride 2", GPT)
    arrow(ax, (first + 7, 57), (52, 64))
    arrow(ax, (first + segment - 7, 57), (78, 64))
    box(ax, 41, 77, 22, 7, "token loss\ncross entropy with $c$", LOSS)
    box(ax, 67, 77, 22, 7, "distillation loss\nmean squared error", LOSS)
    arrow(ax, (52, 71), (52, 77))
    arrow(ax, (78, 71), (78, 77))
    arrow(ax, (52, 84), (62, 91))
    arrow(ax, (78, 84), (68, 91))
    ax.text(75.5, 87.5, "x λ  (0.5)", fontsize=11, weight="bold")
    box(ax, 54, 91, 22, 6, "training loss", LOSS, 13)

    # The teacher looks at the target picture.
    box(ax, 92.5, 61, 6, 26, "teacher (frozen)\nDINOv2, CLIP or HOG", FROZEN, rotation=90, size=10)
    arrow(ax, (92.5, 80.5), (89, 80.5))
    path = "angle,angleA=0,angleB=90,rad=4"
    style = {"arrowstyle": "-|>", "mutation_scale": 13, "color": GREY, "lw": 1.2}
    ax.add_patch(FancyArrowPatch((middle[2] + 7, 10.5), (95.5, 61), connectionstyle=path, **style))


def draw_grid(ax: Axes) -> None:
    """Where each position of the sequence lies in the rotary table (rope=editar)."""
    ax.set(xlim=(-1.4, 9.4), ylim=(13, -2.2), aspect="equal")
    ax.axis("off")
    ax.text(4, -1.6, "Rotary positions of the sequence", fontsize=12, weight="bold", ha="center")
    for row in range(8):
        for column in range(8):
            colour = SOURCE if row < 4 and column < 4 else TARGET if row >= 4 and column >= 4 else "#f6f6f6"
            ax.add_patch(Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white", lw=1))
    ax.add_patch(Rectangle((0, 0), 8, 8, fill=False, edgecolor="#888888"))
    for x, y, label in ((2, 2, "source"), (6, 6, "target"), (6, 2, "not used"), (2, 6, "not used")):
        ax.text(x, y, label, ha="center", va="center", color="#999999" if label == "not used" else "black",
                bbox={"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 2})  # fmt: skip
    ax.text(4, -0.4, "2g columns, g = √N", ha="center", fontsize=10, color=GREY)
    ax.text(-0.6, 4, "2g rows", ha="center", va="center", rotation=90, fontsize=10, color=GREY)
    ax.add_patch(Rectangle((0, 8.7), 8, 1.1, facecolor=TEXT, edgecolor="white"))
    ax.text(4, 9.27, "text: all zero", ha="center", va="center")
    ax.text(4, 11.4, NO_PLACE, ha="center", va="center", fontsize=10, color=GREY)


def box(
    ax: Axes, x: float, y: float, width: float, height: float, label: str, colour: str, size: float = 11,
    rotation: float = 0,
) -> None:  # fmt: skip
    style = "round,pad=0,rounding_size=1"
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=colour, edgecolor="#777777"))
    ax.text(x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=size, rotation=rotation)


def cells(ax: Axes, x: float, y: float, colour: str, labels: list[str], edge: str = "white") -> None:
    for index, label in enumerate(labels):
        ax.add_patch(Rectangle((x + index * CELL, y), CELL, 5.2, facecolor=colour, edgecolor=edge, lw=1.2))
        ax.text(x + (index + 0.5) * CELL, y + 2.6, label, ha="center", va="center", fontsize=11.5)


def picture(ax: Axes, pixels: np.ndarray, middle: float, label: str) -> None:
    ax.imshow(pixels, extent=(middle - 6.9, middle + 6.9, 3.2, 18.5), aspect="auto", zorder=2)
    ax.text(middle, 1.6, label, ha="center", va="center", color=GREY)


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color=GREY, lw=1.2))


if __name__ == "__main__":
    main()
