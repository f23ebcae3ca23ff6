"""`make demo`: edit with the reference checkpoint, train a GPT from scratch, score both, draw a report.

Everything goes through the code that runs the real thing: `train`, `EditPipeline` and, at the end,
`editar.eval benchmark=pie_bench` on held-out samples in PIE-Bench's layout. As EditAR does, the GPT starts from a
ready tokenizer (reference/nano_tokenizer). Writes report.html, grid.png, learning.png, scores.json,
guidance_sweep.json and pie_bench/ into --out, and says each result as soon as it is there.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from editar.config import EvalConfig, TokenizerTrainConfig, TrainConfig, from_yaml, override
from editar.data.nano.world import TRANSLATIONS, NanoWorld, Plan, render
from editar.data.sample import EditSample
from editar.errors import ConfigError
from editar.evaluation.nano.export import export_pie_bench
from editar.evaluation.nano.run import sheet
from editar.evaluation.nano.scoring import in_memory, score_method, shuffled
from editar.evaluation.run import evaluate
from editar.images import contact_sheet, save_image
from editar.models.gpt import GPT
from editar.report.demo_page import loss_curves, sweep_curve, task_bars, write_demo_page
from editar.report.plots import picture_uri
from editar.runtime.device import has_fast_bfloat16
from editar.runtime.entry import at_least, load_config, script
from editar.runtime.files import write_json
from editar.runtime.log import duration, echo, say
from editar.sampling.pipeline import EditPipeline
from editar.tables.render import strict_json
from editar.tables.scores import Evaluation, MethodScores, breakdown
from editar.training.loop import train

SHIPPED = Path(__file__).resolve().parent.parent / "reference"
SWEEP = (1.0, 1.5, 2.0, 3.0)


class Bench:
    """The held-out samples that every model is scored on, and what has been found so far."""

    def __init__(self, count: int) -> None:
        world = NanoWorld("heldout", count)
        self.plans: list[Plan] = [world.plan(i) for i in range(count)]
        self.samples: list[EditSample] = [render(plan) for plan in self.plans]
        self.instructions = [sample.instruction for sample in self.samples]
        self.methods: list[MethodScores] = []
        self.outputs: dict[str, list[np.ndarray]] = {}

    def edit(
        self, pipeline: EditPipeline, name: str, shuffle: bool = False, masked: bool = False, **sampling: float
    ) -> MethodScores:
        """Edit and score every sample; `shuffle` gives each the instruction of another, `masked` tells
        the sampler where the edit goes."""
        instructions = shuffled(self.instructions) if shuffle else self.instructions
        settings = override(pipeline.cfg.sampling, sampling, "sampling")
        ids = [sample.id for sample in self.samples]
        masks = [sample.mask for sample in self.samples] if masked else None
        sources = [sample.source for sample in self.samples]
        return self.add(name, pipeline.edit_arrays(sources, instructions, ids, settings, masks))

    def add(self, name: str, outputs: list[np.ndarray]) -> MethodScores:
        """Score outputs under a name and say so at once."""
        self.methods.append(score_method(name, self.plans, outputs))
        self.outputs[name] = outputs
        found = in_memory(self.methods).means(self.methods[-1])["success"]
        say(f"   {name}: {found.mean:.1f} % [{found.low:.0f}, {found.high:.0f}] of {found.count} edits succeed")
        return self.methods[-1]

    @property
    def evaluation(self) -> Evaluation:
        return in_memory(self.methods)


class Learning:
    """What a GPT in training can do: called after every held-out evaluation, it edits a few held-out samples."""

    def __init__(self, count: int) -> None:
        self.bench, self.steps = Bench(count), list[int]()

    def __call__(self, step: int, pipeline: EditPipeline) -> dict[str, float]:
        method = self.bench.edit(pipeline, f"step {step}")
        self.steps.append(step)
        return {"success": in_memory([method]).means(method)["success"].mean}

    def strip(self, pictures: int = 8) -> np.ndarray:
        """A line per sample: source, the edits of up to eight evaluations, the last one among them, target; twice
        the size."""
        samples, outputs = self.bench.samples[:pictures], list(self.bench.outputs.values())
        apart = math.ceil(len(outputs) / 8)
        outputs = outputs[::-apart][::-1]
        rows = [[s.source, *(found[i] for found in outputs), s.target] for i, s in enumerate(samples)]
        return contact_sheet(rows).repeat(2, 0).repeat(2, 1)


def train_from_scratch(out: Path, tokenizer: Path, steps: int, learning: Learning) -> Path:
    """A GPT on the codes of the ready tokenizer in that folder, as EditAR trains its own; returns its run folder."""
    shutil.rmtree(out, ignore_errors=True)
    shape = asdict(from_yaml(TokenizerTrainConfig, tokenizer / "config.yaml").tokenizer) | {"weights": str(tokenizer)}
    overrides = [
        "experiment=nano_demo",
        f"output_dir={out}",
        *(f"tokenizer.{key}={value}" for key, value in shape.items()),
        f"precision={'bf16' if has_fast_bfloat16() else 'fp32'}",
        f"steps={steps}",
        f"data.train_samples={max(64, 8 * steps)}",  # each is read four times: encoding costs as much as two readings
        "data.heldout_samples=64",
        f"log_every={max(1, steps // 20)}",
        f"eval_every={max(1, min(100, steps // 2))}",
        f"save_every={steps}",
    ]
    return train(load_config(TrainConfig, "train", overrides), learning)


def from_words(pipeline: EditPipeline, samples: list[EditSample], most: int = 5) -> list[tuple[str, np.ndarray]]:
    """Pictures drawn from the captions of the first translation samples, without their sources."""
    chosen = [sample for sample in samples if sample.task in TRANSLATIONS][:most]
    words = [sample.instruction for sample in chosen]
    return list(zip(words, pipeline.edit_arrays([None] * len(words), words, [s.id for s in chosen]), strict=True))


def score_as_pie_bench(checkpoint: Path, out: Path, count: int) -> None:
    """The evaluator of Tables 1 and 3 on `count` nano edits; prints Table 1."""
    shutil.rmtree(out, ignore_errors=True)
    root = export_pie_bench(out / "benchmark", count)
    overrides = ["benchmark=pie_bench", f"root={root}", f"checkpoint={checkpoint}", f"output_dir={out / 'scores'}"]
    evaluate(load_config(EvalConfig, "eval", overrides))


@script("demo")
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--reference", type=Path, default=SHIPPED / "nano")
    parser.add_argument("--tokenizer", type=Path, default=SHIPPED / "nano_tokenizer", help="for the model from scratch")
    parser.add_argument("--samples", type=at_least(1), default=240, help="held-out samples per model")
    parser.add_argument("--pie-samples", type=at_least(0), default=20, help="of them, in PIE-Bench's layout")
    parser.add_argument("--gpt-steps", type=at_least(1), default=1500)
    args = parser.parse_args(argv)
    if args.out.exists() and not args.out.is_dir():
        raise ConfigError(f"--out {args.out} is a file; give a folder")
    if not (args.tokenizer / "config.yaml").is_file():
        raise ConfigError(f"--tokenizer {args.tokenizer}: give the folder of a tokenizer's training")
    clock = Stages()
    torch.manual_seed(0)
    bench = Bench(args.samples)

    clock.begin("1/4 the reference checkpoint")
    reference = EditPipeline.from_pretrained(args.reference)
    bench.edit(reference, "reference")
    bench.edit(reference, "shuffled text", shuffle=True)
    bench.edit(reference, "with the mask", masked=True)
    bench.add("tokenizer alone", reference.reconstruct([sample.target for sample in bench.samples]))
    drawn = from_words(reference, bench.samples)
    save_image(sheet(bench.samples, bench.outputs["reference"], successes(bench.methods[0])), args.out / "grid.png")
    say(f"   look: {args.out / 'grid.png'} (source | target | output)")
    few = Bench(max(1, args.samples // 3))
    for scale in SWEEP:
        few.edit(reference, f"guidance {scale:g}", cfg_scale=scale)

    clock.begin("2/4 a model from scratch")
    learning = Learning(min(40, args.samples))
    run_folder = train_from_scratch(args.out / "scratch", args.tokenizer, args.gpt_steps, learning)
    save_image(learning.strip(), args.out / "learning.png")
    say(f"   look: {args.out / 'learning.png'} (source | the edit as training goes on | target)")
    scratch = EditPipeline.from_pretrained(run_folder)
    bench.edit(scratch, "from scratch")
    bench.edit(scratch, "scratch, shuffled", shuffle=True)
    untrained = EditPipeline(scratch.cfg, GPT(scratch.cfg.gpt).eval(), scratch.tokenizer, scratch.text)
    bench.edit(untrained, "untrained")

    clock.begin("3/4 the page")
    write_json(args.out / "scores.json", strict_json(bench.evaluation.as_dict()))
    write_json(args.out / "guidance_sweep.json", strict_json(few.evaluation.as_dict()))
    write_page(args, bench, few, drawn, learning, run_folder, clock.minutes)
    echo(breakdown(bench.evaluation, ["success"]))

    clock.begin("4/4 the paper's evaluator on nano edits")
    score_as_pie_bench(args.reference, args.out / "pie_bench", args.pie_samples)
    clock.end()
    echo(f"\n{clock.minutes} in all. Look at {args.out / 'report.html'}; numbers in {args.out / 'scores.json'}")


class Stages:
    """Says which stage begins and how long the one before took."""

    def __init__(self) -> None:
        self.started = self.last = time.perf_counter()
        self.name = ""

    def begin(self, name: str) -> None:
        self.end()
        self.name, self.last = name, time.perf_counter()
        say(f"== {name} ==")

    def end(self) -> None:
        if self.name:
            say(f"   done in {duration(time.perf_counter() - self.last)}")

    @property
    def minutes(self) -> str:
        return duration(time.perf_counter() - self.started)


def successes(method: MethodScores) -> list[bool]:
    return [row["success"] > 0 for row in method.rows]


def write_page(
    args: argparse.Namespace,
    bench: Bench,
    few: Bench,
    drawn: list[tuple[str, np.ndarray]],
    learning: Learning,
    run: Path,
    minutes: str,
) -> None:
    reference = args.reference / "metrics.jsonl"
    curves = {"from scratch": run / "metrics.jsonl"}
    plots = [
        loss_curves(
            curves, f"Success while learning, on {len(learning.bench.samples)} held-out samples, %", ("success",)
        ),
        task_bars(bench.evaluation, ("reference", "from scratch")),
        sweep_curve(few.evaluation, SWEEP),
        loss_curves(curves, "GPT from scratch: losses", ("token", "heldout_token", "distill")),
    ]
    if reference.is_file():
        keys = ("token", "heldout_token", "distill")
        plots.append(loss_curves({"reference": reference}, "Reference: losses", keys))
    intro = (
        f"{args.samples} held-out samples of eight tasks at 64 px. 'reference' ships with the repository; "
        f"'from scratch' was trained just now, {args.gpt_steps} steps on the codes of reference/nano_tokenizer. "
        "'shuffled text' gives each source another sample's instruction; 'with the mask' lets only codes in and "
        "around the true edit mask change (translations have none); 'tokenizer alone' passes the true target "
        f"through the VQ tokenizer, the best any model on its codes can do. Wall time {minutes}."
    )
    shown = {name: bench.outputs[name] for name in ("reference", "from scratch")}
    strip = picture_uri(learning.strip())
    write_demo_page(
        args.out / "report.html", "EditAR nano demo", intro, bench.evaluation, bench.samples, shown, drawn, strip, plots
    )


if __name__ == "__main__":
    main()
