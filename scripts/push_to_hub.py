"""Publish a checkpoint on the Hugging Face hub: `push_to_hub.py runs/nano owner/name --scores outputs/eval`.

Writes config.yaml, the weights and a model card with the numbers of scores.json. Log in first with `hf auth login`.
`--save FOLDER` writes the same folder here and uploads nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from editar.errors import CheckpointError, ConfigError, one_line
from editar.runtime.entry import script
from editar.runtime.files import new_folder
from editar.runtime.log import echo
from editar.sampling.pipeline import EditPipeline
from editar.tables.scores import breakdown, load_evaluation


def results_of(scores: Path) -> str:
    """The numbers of a scores.json as the model card shows them."""
    found = load_evaluation(scores)
    said = f"Benchmark `{found.benchmark}`, protocol `{found.protocol}`, {len(found.methods[0].rows)} pictures:"
    return f"{said}\n\n```text\n{breakdown(found)}\n```"


@script("push_to_hub")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, as editar.train or export_run.py wrote it")
    parser.add_argument("repository", help="owner/name")
    parser.add_argument("--scores", type=Path, help="scores.json of editar.eval, for the model card")
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="write here instead of uploading")
    args = parser.parse_args()
    try:
        validate_repo_id(args.repository)
    except HFValidationError as error:
        raise ConfigError(f"give the repository as owner/name: {one_line(error)}") from None
    if args.save is not None and args.save.exists():
        raise ConfigError(f"{args.save} exists; give another --save FOLDER")
    card = {"repo_id": args.repository} | ({"results": results_of(args.scores)} if args.scores else {})
    pipeline = EditPipeline.from_pretrained(args.run, "cpu", dtype="float32")
    if args.save is not None:
        with new_folder(args.save) as partial:
            pipeline.save_pretrained(partial, model_card_kwargs=card)
        echo(args.save)
        return
    try:
        echo(pipeline.push_to_hub(args.repository, private=args.private or None, model_card_kwargs=card))
    except Exception as error:  # no login, no right, offline: many types, one meaning
        raise CheckpointError(f"{args.repository}: the hub took nothing ({one_line(error)})") from None


if __name__ == "__main__":
    main()
