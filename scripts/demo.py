"""`make demo`: edit with the reference checkpoint, train a model from scratch, score both, draw a report.

Everything goes through the code that runs the real thing: the entries' `train_tokenizer`, `train`,
`EditPipeline` and, at the end, `editar.eval benchmark=pie_bench` on held-out samples in PIE-Bench's
layout. Writes report.html, grid.png, scores.json, guidance_sweep.json and pie_bench/ into --out, and says each
stage's result when the stage ends.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
import torch

from editar.config import EvalConfig, TokenizerTrainConfig, TrainConfig, override
from editar.data.nano.world import NanoWorld, Plan, render
from editar.data.sample import EditSample
from editar.evaluation.nano.export import export_pie_bench
from editar.evaluation.nano.run import sheet
from editar.evaluation.nano.scoring import in_memory, score_method, shuffled
from editar.evaluation.run import evaluate
from editar.images import save_image
from editar.models.gpt import GPT
from editar.report.demo_page import loss_curves, sweep_curve, task_bars, write_demo_page
from editar.runtime.entry import load_config, script
from editar.runtime.files import write_json
from editar.runtime.log import duration, say
from editar.sampling.pipeline import EditPipeline
from editar.tables.render import strict_json
from editar.tables.scores import Evaluation, MethodScores, breakdown
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer

REFERENCE = Path(__file__).resolve().parent.parent / "reference" / "nano"
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


def train_from_scratch(out: Path, tokenizer_steps: int, gpt_steps: int) -> Path:
    """A tokenizer, then a GPT on its codes, with the nano configs; returns the GPT's run folder."""
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    shutil.rmtree(out / "gpt", ignore_errors=True)
    tokenizer = train_tokenizer(
        load_config(
            TokenizerTrainConfig,
            "train_tokenizer",
            [f"output_dir={out / 'tokenizer'}", f"steps={tokenizer_steps}", f"kmeans_at={tokenizer_steps // 4}"],
        )
    )
    return train(
        load_config(
            TrainConfig,
            "train",
            [
                "experiment=nano_demo",
                f"output_dir={out / 'gpt'}",
                f"tokenizer.weights={tokenizer}",
                f"steps={gpt_steps}",
                f"data.train_samples={max(64, 12 * gpt_steps)}",
                "data.heldout_samples=64",
                f"log_every={max(1, gpt_steps // 20)}",
                f"eval_every={gpt_steps}",
                f"save_every={gpt_steps}",
            ],
        )
    )


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
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--samples", type=int, default=240, help="held-out samples per model")
    parser.add_argument("--pie-samples", type=int, default=20, help="of them, in PIE-Bench's layout")
    parser.add_argument("--tokenizer-steps", type=int, default=230)
    parser.add_argument("--gpt-steps", type=int, default=440)
    args = parser.parse_args(argv)
    clock = Stages()
    torch.manual_seed(0)
    bench = Bench(args.samples)

    clock.begin("1/4 the reference checkpoint")
    reference = EditPipeline.from_pretrained(args.reference)
    bench.edit(reference, "reference")
    bench.edit(reference, "shuffled text", shuffle=True)
    bench.edit(reference, "with the mask", masked=True)
    bench.add("tokenizer alone", reference.reconstruct([sample.target for sample in bench.samples]))
    save_image(sheet(bench.samples, bench.outputs["reference"], successes(bench.methods[0])), args.out / "grid.png")
    say(f"   look: {args.out / 'grid.png'} (source | target | output)")
    few = Bench(max(1, args.samples // 3))
    for scale in SWEEP:
        few.edit(reference, f"guidance {scale:g}", cfg_scale=scale)

    clock.begin("2/4 a model from scratch")
    run_folder = train_from_scratch(args.out / "scratch", args.tokenizer_steps, args.gpt_steps)
    scratch = EditPipeline.from_pretrained(run_folder)
    bench.edit(scratch, "from scratch")
    bench.edit(scratch, "scratch, shuffled", shuffle=True)
    untrained = EditPipeline(scratch.cfg, GPT(scratch.cfg.gpt).eval(), scratch.tokenizer, scratch.text)
    bench.edit(untrained, "untrained")

    clock.begin("3/4 the page")
    write_json(args.out / "scores.json", strict_json(bench.evaluation.as_dict()))
    write_json(args.out / "guidance_sweep.json", strict_json(few.evaluation.as_dict()))
    write_page(args, bench, few, run_folder, clock.minutes)
    print(breakdown(bench.evaluation, ["success"]))

    clock.begin("4/4 the paper's evaluator on nano edits")
    score_as_pie_bench(args.reference, args.out / "pie_bench", args.pie_samples)
    clock.end()
    print(f"\n{clock.minutes} in all. Look at {args.out / 'report.html'}; numbers in {args.out / 'scores.json'}")


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


def write_page(args: argparse.Namespace, bench: Bench, few: Bench, run_folder: Path, minutes: str) -> None:
    tokenizer, reference = args.out / "scratch/tokenizer/metrics.jsonl", args.reference / "metrics.jsonl"
    plots = [
        task_bars(bench.evaluation, ("reference", "from scratch")),
        sweep_curve(few.evaluation, SWEEP),
        loss_curves({"from scratch": run_folder / "metrics.jsonl"}, "GPT from scratch: losses", ("token", "distill")),
        loss_curves({"tokenizer": tokenizer}, "Tokenizer from scratch: PSNR", ("psnr_db",)),
    ]
    if reference.is_file():
        keys = ("token", "heldout_token", "distill")
        plots.append(loss_curves({"reference": reference}, "Reference: losses", keys))
    intro = (
        f"{args.samples} held-out samples of eight tasks at 64 px. 'reference' ships with the repository; "
        f"'from scratch' was trained just now ({args.tokenizer_steps} tokenizer steps, {args.gpt_steps} GPT steps). "
        "'shuffled text' gives each source another sample's instruction; 'with the mask' lets only codes in and "
        "around the true edit mask change (translations have none); 'tokenizer alone' passes the true target "
        f"through the VQ tokenizer, the best any model on its codes can do. Wall time {minutes}."
    )
    shown = {name: bench.outputs[name] for name in ("reference", "from scratch")}
    write_demo_page(args.out / "report.html", "EditAR nano demo", intro, bench.evaluation, bench.samples, shown, plots)


if __name__ == "__main__":
    main()
