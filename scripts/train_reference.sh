#!/usr/bin/env bash
# The nano references: tokenizer, its decoder, GPT, GPT of two pictures; seed 0 everywhere. On one core the first two take
# 34 minutes, the GPT about five hours, that of two pictures about one. The shipped GPTs were trained in stretches,
# each toward another end of the falling learning rate (their provenance.json), here in one.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs}
OUT=${OUT:-$RUNS/reference}  # a new folder
TOKENIZER="$RUNS/nano_tokenizer"

$PYTHON -m editar.train_tokenizer output_dir="$TOKENIZER"
# The codes are settled then, so the decoder can learn on beside the GPT; only what a picture looks like changes.
$PYTHON -m editar.train_tokenizer output_dir="${TOKENIZER}_decoder" tokenizer.weights="$TOKENIZER" \
  freeze_codes=true kmeans_at=-1 steps=5000
$PYTHON scripts/export_run.py "${TOKENIZER}_decoder" "$OUT/nano_tokenizer"
$PYTHON -m editar.train output_dir="$RUNS/nano" tokenizer.weights="$TOKENIZER" \
  data.train_samples=64000 'data.shape_counts=[1,2,2,3]' steps=29000 precision=bf16 log_every=100 eval_every=2000
$PYTHON scripts/export_run.py "$RUNS/nano" "$OUT/nano" --decoder "${TOKENIZER}_decoder"
$PYTHON -m editar.train data=nano_pairs init_from="$OUT/nano" tokenizer.weights="$OUT/nano" output_dir="$RUNS/nano_pairs" \
  data.train_samples=64000 'data.shape_counts=[1,2,2,3]' data.sources.nano_pairs.weight=3 drop.each_image=0.05 \
  steps=10000 precision=bf16 log_every=100 eval_every=1000
$PYTHON scripts/export_run.py "$RUNS/nano_pairs" "$OUT/nano_pairs"
