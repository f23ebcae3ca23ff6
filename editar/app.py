"""A page to edit in a browser: `python -m editar.app checkpoint=reference/nano`, then open the address that it prints.

One edit runs at a time, others wait in a queue. Needs gradio: `pip install -e ".[app]"`.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from editar.config import AppConfig
from editar.config.data import CONDITION_SOURCES
from editar.errors import ConfigError, UserError, one_line
from editar.runtime.entry import run
from editar.runtime.log import say

if TYPE_CHECKING:
    import gradio
    import numpy as np
    from PIL import Image

    from editar.sampling.pipeline import EditPipeline

TEXT_ALONE = "text alone"
TASKS = ("edit", *CONDITION_SOURCES, TEXT_ALONE)
SHOWN = 768  # pixels of the longer side in the mask's editor
DAY = 86400
Shown = list[tuple["Image.Image", str]]


class StoppedByUser(Exception):
    """Nobody waits for this edit any more."""


class Asked(NamedTuple):
    """What the page's fields say when an edit is started; `file` is the upload, `drawn` the mask editor's value."""

    file: str | None
    task: str
    from_photo: bool
    instruction: str
    drawn: dict[str, Any] | None
    cfg_scale: float
    seed: float
    samples: float

    def check(self) -> None:
        """A cleared field is None, and a program may send anything. Raises ConfigError."""
        for name in ("cfg_scale", "seed", "samples"):
            if not isinstance(getattr(self, name), (int, float)):
                raise ConfigError(f"{name}: give a number")
        if self.task not in TASKS:
            raise ConfigError(f"task: choose one of {', '.join(TASKS)}")
        if not isinstance(self.instruction, str) or not self.instruction.strip():
            raise ConfigError("say in words what to change")


class Desk:
    """What the page's buttons do, one edit at a time."""

    def __init__(self, cfg: AppConfig, pipeline: EditPipeline) -> None:
        self.cfg, self.pipeline = cfg, pipeline
        self.worker = ThreadPoolExecutor(1)  # the pipeline's buffers serve one call at a time

    def edits(self, *given: Any) -> Iterator[tuple[Shown, str]]:
        """The page's values, in the order of `Asked` -> source and results with their captions, and what is going on.
        Raises gradio.Error for a mistake.

        The first items tell the progress, with nothing to show yet.
        """
        import gradio

        stop, accepted = threading.Event(), [0]

        def count(codes: int) -> None:
            accepted[0] += codes
            if stop.is_set():
                raise StoppedByUser

        asked = Asked(*given)
        try:
            asked.check()
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        total = int(asked.samples) * self.pipeline.gpt.cfg.image_tokens
        working: Future[Shown] = self.worker.submit(self._edit, asked, count)
        try:
            while not working.done():
                yield [], f"{accepted[0]} of {total} codes accepted"
                stop.wait(0.2)
            yield working.result(), f"{total} codes accepted, seed {int(asked.seed)}"
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from None
        except Exception as error:
            say(f"editar.app: {type(error).__name__}: {one_line(error)}")
            raise gradio.Error("this edit failed; the terminal of editar.app says why", print_exception=False) from None
        finally:
            stop.set()

    def _edit(self, asked: Asked, count: Callable[[int], None]) -> Shown:
        from editar.images import load_image

        picture: Image.Image | None = None
        text: str | None = asked.instruction
        if asked.task != TEXT_ALONE:
            if asked.file is None:
                raise ConfigError("upload a picture first, or choose the task 'text alone'")
            picture = load_image(asked.file, Path(asked.file).name)
        if picture is not None and asked.task != "edit":
            picture, text = self._condition(asked, picture)
        edits = asked.task == "edit"
        results = self.pipeline(
            picture,
            text,
            cfg_scale=asked.cfg_scale,
            seed=int(asked.seed),
            num_samples=int(asked.samples),
            mask=strokes_of(asked.drawn, picture.size) if picture is not None and edits else None,
            fit="restore" if edits else "square",
            progress=count,
        )
        shown = [] if picture is None else [(picture, "source" if edits else asked.task)]
        many = len(results) > 1
        return [*shown, *((result, f"result {i}" if many else "result") for i, result in enumerate(results, 1))]

    def _condition(self, asked: Asked, picture: Image.Image) -> tuple[Image.Image, str | None]:
        from editar.evaluation.translation.conditions import condition_of, prompted

        if asked.from_photo:
            picture = condition_of(asked.task, picture, self.pipeline.cfg, self.cfg.networks, self.pipeline.device)
        return picture, prompted(asked.task, asked.instruction, self.pipeline.cfg)


def strokes_of(drawn: dict[str, Any] | None, size: tuple[int, int]) -> np.ndarray | None:
    """The strokes of the mask's editor at the picture's size (width, height) -> (H, W) bool; None without strokes."""
    import numpy as np
    from PIL import Image

    layers = (drawn or {}).get("layers") or []
    strokes = [np.asarray(layer.convert("RGBA").resize(size, Image.Resampling.NEAREST))[..., 3] > 0 for layer in layers]
    mask = np.any(strokes, axis=0) if strokes else np.zeros(())
    return mask if mask.any() else None


def for_mask(file: str | None) -> Image.Image | None:
    """An uploaded picture as the mask's editor shows it; None for a file that is none, which the edit will name."""
    from editar.images import load_image

    try:
        picture = None if file is None else load_image(file)
    except UserError:
        return None
    if picture is not None:
        picture.thumbnail((SHOWN, SHOWN))
    return picture


def examples(pipeline: EditPipeline, folder: Path) -> list[list[str]]:
    """Pictures of the kind the checkpoint knows, as files, and an instruction for each."""
    from editar.images import save_image

    if pipeline.cfg.text.name == "nano":
        from editar.data.nano.world import EDITS, NanoWorld

        world = NanoWorld("heldout", len(EDITS))  # one sample of each task
        found = {
            sample.task: (sample.source, sample.instruction) for sample in map(world.__getitem__, range(len(EDITS)))
        }
    else:
        from skimage import data

        found = {
            "astronaut": (data.astronaut(), "make her hair red"),
            "coffee": (data.coffee(), "fill the cup with tea"),
        }
    rows = []
    for name, (picture, instruction) in sorted(found.items()):
        file = folder / f"example_{name}.png"
        save_image(picture, file)
        rows.append([str(file), instruction])
    return rows


def build(cfg: AppConfig, pipeline: EditPipeline) -> gradio.Blocks:
    """The page. Raises ConfigError without gradio."""
    import gradio as gr

    desk = Desk(cfg, pipeline)
    sampling = pipeline.cfg.sampling
    with gr.Blocks(title="EditAR", analytics_enabled=False, delete_cache=(3600, DAY)) as page:
        gr.Markdown(f"# EditAR\n{cfg.checkpoint}: pictures of {pipeline.cfg.image_size} pixels")
        with gr.Row():
            with gr.Column(scale=2):
                source: Any = gr.Image(label="picture", type="filepath", sources=["upload", "webcam", "clipboard"])
                # The file as it came: `load_image` reads its pixels and names what is wrong with it.
                source.preprocess = lambda payload: payload and payload.path
                instruction = gr.Textbox(
                    label="instruction", placeholder="what to change", max_lines=3, max_length=1000
                )
                with gr.Row():
                    go = gr.Button("edit", variant="primary")
                    stop = gr.Button("stop")
                with gr.Row():
                    task = gr.Dropdown(TASKS, value="edit", label="task")
                    from_photo = gr.Checkbox(False, label="make the condition from a photograph")
                with gr.Row():
                    cfg_scale = gr.Slider(1, 10, sampling.cfg_scale, step=0.1, label="guidance")
                    samples = gr.Slider(1, cfg.most_samples, 1, step=1, label="results")
                    seed = gr.Number(sampling.seed, precision=0, minimum=0, maximum=2**32 - 1, label="seed")
                with gr.Accordion("mask: paint what may change", open=False):
                    drawn = gr.ImageMask(
                        type="pil", layers=False, sources=(), transforms=(), format="png", show_label=False,
                        canvas_size=(SHOWN, SHOWN), brush=gr.Brush(colors=["#ffffff"], color_mode="fixed"),
                    )  # fmt: skip
            with gr.Column(scale=3):
                results = gr.Gallery(label="source and results", format="png", columns=3, object_fit="contain")
                status = gr.Markdown()
        gr.Examples(examples(pipeline, Path(cfg.output_dir)), [source, instruction], cache_examples=False)
        source.change(for_mask, source, drawn, show_progress="hidden")
        given = [source, task, from_photo, instruction, drawn, cfg_scale, seed, samples]
        for start in (go.click, instruction.submit):
            running = start(desk.edits, given, [results, status], concurrency_limit=1, concurrency_id="edits")
            stop.click(lambda: "stopped", None, status, cancels=[running])
    return page.queue(max_size=cfg.most_waiting)


def serve(cfg: AppConfig, block: bool = True) -> gradio.Blocks:
    """Open the page; with `block` until Ctrl-C. Raises ConfigError for a missing gradio or a port in use."""
    folder = Path(cfg.output_dir).resolve()
    os.environ["GRADIO_TEMP_DIR"] = str(folder)  # before gradio is imported
    try:
        import gradio as gr
    except ImportError:
        raise ConfigError('editar.app needs gradio: pip install -e ".[app]"') from None
    from editar.sampling.pipeline import EditPipeline

    folder.mkdir(parents=True, exist_ok=True)
    pipeline = EditPipeline.from_pretrained(
        cfg.checkpoint, cfg.device, cfg.sampling, cfg.compile, cfg.int8, cfg.dtype, cfg.text.name, lora=cfg.lora
    )
    try:
        socket.getaddrinfo(cfg.host, None)
    except OSError as error:
        raise ConfigError(f"host={cfg.host}: no address of this machine ({one_line(error)})") from None
    page = build(cfg, pipeline)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from elsewhere
    try:
        page.launch(
            server_name=cfg.host, server_port=cfg.port or None, max_file_size=cfg.largest_mb << 20, show_error=True,
            quiet=True, share=False, prevent_thread_lock=True, theme=theme, footer_links=[], ssr_mode=False,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"port={cfg.port} of host={cfg.host}: {one_line(error)}") from None
    say(f"open {page.local_url}   (Ctrl-C ends)")
    if block:
        page.block_thread()
    return page


def main() -> None:
    run(AppConfig, "app", serve)


if __name__ == "__main__":
    main()
