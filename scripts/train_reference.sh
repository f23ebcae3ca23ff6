#!/usr/bin/env bash
# How reference/nano was made: two tokenizer trainings, one GPT training, one export. About 100 minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs}

# The first tokenizer learned an earlier form of the nano world with 512 codes; the second starts from its
# convolutions and sets 1024 new codes by k-means.
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_1" tokenizer.codebook_size=512 steps=2500
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_2" tokenizer.weights="$RUNS/nano_tokenizer_1" \
  steps=1300 kmeans_at=0 optim.muon_lr=0.01 optim.lr=1e-3
$PYTHON -m editar.train output_dir="$RUNS/nano" tokenizer.weights="$RUNS/nano_tokenizer_2" steps=3800
$PYTHON scripts/export_run.py "$RUNS/nano" reference/nano
