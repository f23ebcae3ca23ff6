"""`make demo`: edit with the reference checkpoint, train a model from scratch, score both, draw a report.

Everything goes through the code that runs the real thing: the entries' `train_tokenizer`, `train`,
`EditPipeline` and, at the end, `editar.eval benchmark=pie_bench` on held-out samples in PIE-Bench's
layout. Writes report.html, grid.png, metrics.json and pie_bench/ into --out.
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
from editar.evaluation.nano.run import PROTOCOL, sheet
from editar.evaluation.nano.scoring import Summary, judge, shuffled, summarise, table
from editar.evaluation.run import evaluate
from editar.images import save_image
from editar.models.gpt import GPT
from editar.report.demo_page import Column, loss_curves, sweep_curve, task_bars, write_report
from editar.runtime.entry import load_config
from editar.runtime.files import provenance, write_json
from editar.runtime.log import duration, say
from editar.sampling.pipeline import EditPipeline
from editar.training.loop import train
from editar.training.tokenizer.loop import train_tokenizer

REFERENCE = Path(__file__).resolve().parent.parent / "reference" / "nano"
SWEEP = (1.0, 1.5, 2.0, 3.0)


class Bench:
    """The held-out samples every model is scored on."""

    def __init__(self, count: int) -> None:
        world = NanoWorld("heldout", count)
        self.plans: list[Plan] = [world.plan(i) for i in range(count)]
        self.samples: list[EditSample] = [render(plan) for plan in self.plans]
        self.instructions = [sample.instruction for sample in self.samples]

    def score(
        self, pipeline: EditPipeline, name: str, shuffle: bool = False, masked: bool = False, **sampling: float
    ) -> tuple[Column, Summary]:
        """Edit and judge every sample; `shuffle` gives each the instruction of another, `masked` tells
        the sampler where the edit goes."""
        instructions = shuffled(self.instructions) if shuffle else self.instructions
        settings = override(pipeline.cfg.sampling, sampling, "sampling")
        ids = [sample.id for sample in self.samples]
        masks = [sample.mask for sample in self.samples] if masked else None
        outputs = pipeline.edit_arrays([s.source for s in self.samples], instructions, ids, settings, masks)
        return self.judge(outputs, name)

    def judge(self, outputs: list[np.ndarray], name: str) -> tuple[Column, Summary]:
        verdicts = [judge(plan, output) for plan, output in zip(self.plans, outputs, strict=True)]
        return Column(name, outputs, verdicts), summarise(verdicts)


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


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    parser.add_argument("--samples", type=int, default=240, help="held-out samples per model")
    parser.add_argument("--pie-samples", type=int, default=20, help="of them, in PIE-Bench's layout")
    parser.add_argument("--tokenizer-steps", type=int, default=230)
    parser.add_argument("--gpt-steps", type=int, default=440)
    args = parser.parse_args(argv)
    started = time.perf_counter()
    torch.manual_seed(0)
    bench = Bench(args.samples)
    summaries: dict[str, Summary] = {}

    say("== 1/4 the reference checkpoint ==")
    reference = EditPipeline.from_pretrained(args.reference)
    shown, summaries["reference"] = bench.score(reference, "reference")
    _, summaries["shuffled text"] = bench.score(reference, "shuffled", shuffle=True)
    _, summaries["with the mask"] = bench.score(reference, "masked", masked=True)
    _, summaries["tokenizer alone"] = bench.judge(reference.reconstruct([s.target for s in bench.samples]), "ceiling")
    few = Bench(args.samples // 3)
    sweep = {scale: few.score(reference, "sweep", cfg_scale=scale)[1] for scale in SWEEP}

    say("== 2/4 from scratch ==")
    run_folder = train_from_scratch(args.out / "scratch", args.tokenizer_steps, args.gpt_steps)
    scratch = EditPipeline.from_pretrained(run_folder)
    scratch_shown, summaries["from scratch"] = bench.score(scratch, "from scratch")
    _, summaries["scratch, shuffled"] = bench.score(scratch, "shuffled", shuffle=True)
    untrained = EditPipeline(scratch.cfg, GPT(scratch.cfg.gpt).eval(), scratch.tokenizer, scratch.text)
    _, summaries["untrained"] = bench.score(untrained, "untrained")

    say("== 3/4 report ==")
    minutes = duration(time.perf_counter() - started)
    write_json(
        args.out / "metrics.json",
        {
            "protocol": PROTOCOL,
            "samples": args.samples,
            "made_by": provenance(),
            "wall_time": minutes,
            "systems": {name: summary.as_dict() for name, summary in summaries.items()},
            "guidance_sweep": {str(scale): summary.as_dict() for scale, summary in sweep.items()},
        },
    )
    save_image(sheet(bench.samples, shown.outputs, shown.verdicts), args.out / "grid.png")
    metrics = {"from scratch": run_folder / "metrics.jsonl"}
    reference_log = args.reference / "metrics.jsonl"
    plots = [
        task_bars({name: summaries[name] for name in ("reference", "from scratch")}),
        sweep_curve(sweep, len(few.samples)),
        loss_curves(metrics, "GPT from scratch: losses", ("token", "distill")),
        loss_curves(
            {"tokenizer": args.out / "scratch/tokenizer/metrics.jsonl"}, "Tokenizer from scratch: PSNR", ("psnr_db",)
        ),
    ]
    if reference_log.is_file():
        plots.append(
            loss_curves({"reference": reference_log}, "Reference: losses", ("token", "heldout_token", "distill"))
        )
    intro = (
        f"{args.samples} held-out samples of eight tasks at 64 px. 'reference' ships with the repository; "
        f"'from scratch' was trained just now ({args.tokenizer_steps} tokenizer steps, {args.gpt_steps} GPT steps). "
        "'shuffled text' gives each source another sample's instruction; 'with the mask' lets only codes in and "
        "around the true edit mask change (translations have none); 'tokenizer alone' passes the true target "
        f"through the VQ tokenizer, the best any model on its codes can do. Wall time {minutes}."
    )
    write_report(
        args.out / "report.html", "EditAR nano demo", intro, summaries, bench.samples, [shown, scratch_shown], plots
    )
    print(table(summaries))

    say("== 4/4 the paper's evaluator on nano edits ==")
    score_as_pie_bench(args.reference, args.out / "pie_bench", args.pie_samples)
    minutes = duration(time.perf_counter() - started)
    print(
        f"\n{minutes} in all. Look at {args.out / 'report.html'} and {args.out / 'grid.png'}; "
        f"numbers in {args.out / 'metrics.json'}"
    )


if __name__ == "__main__":
    main()
