#!/usr/bin/env bash
# How reference/nano was made: three tokenizer trainings, two GPT trainings, one export; seed 0 everywhere.
# About two and a half hours on two cores. It is the path that was walked, not the shortest one: today's
# configs/train_tokenizer.yaml does the work of the first three commands in one.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs}

# 512 codes, on shapes at free positions (an earlier form of the nano world).
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_1" tokenizer.codebook_size=512 \
  steps=2500 consistency_weight=0
# 1024 new codes by k-means, on today's world.
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_2" tokenizer.weights="$RUNS/nano_tokenizer_1" \
  steps=1300 kmeans_at=0 consistency_weight=0 optim.muon_lr=0.01 optim.lr=1e-3
# The same codes, drawn together where an edit changes nothing.
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_3" tokenizer.weights="$RUNS/nano_tokenizer_2" \
  steps=700 kmeans_at=-1 restart_every=0 optim.muon_lr=0.01 optim.lr=1e-3
# On the second tokenizer's codes, stopped at step 1250 of 3800 once the third was there.
$PYTHON -m editar.train output_dir="$RUNS/nano_1" tokenizer.weights="$RUNS/nano_tokenizer_2" \
  data.train_samples=48000 steps=1250
$PYTHON -m editar.train output_dir="$RUNS/nano" tokenizer.weights="$RUNS/nano_tokenizer_3" \
  init_from="$RUNS/nano_1" steps=2000
$PYTHON scripts/export_run.py "$RUNS/nano" reference/nano
