"""Score a checkpoint: `python -m editar.eval checkpoint=reference/nano output_dir=outputs/eval`."""

from __future__ import annotations

from pathlib import Path

from editar.config import EvalConfig
from editar.runtime.entry import run


def score_and_show(cfg: EvalConfig) -> None:
    """`evaluate`, and the page about it where `cfg.report` asks for one."""
    from editar.evaluation.run import evaluate  # these here, because the help text needs none of them

    evaluation = evaluate(cfg)
    if cfg.report and evaluation is not None:
        from editar.report.page import write_page

        write_page([evaluation], [cfg.output_dir], Path(cfg.output_dir) / "report.html", "EditAR evaluation")


def main() -> None:
    run(EvalConfig, "eval", score_and_show)


if __name__ == "__main__":
    main()
