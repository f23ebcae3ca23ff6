#!/usr/bin/env bash
# How reference/nano was made: tokenizer, GPT, export; seed 0 everywhere. About seven hours on two cores.
# This is the path that was walked, not the shortest one: what the tokenizer's four trainings taught (docs/log.md) is in
# today's configs/train_tokenizer.yaml, the first GPT run read an earlier nano T5 with random neighbours, and the third was
# meant to be longer: it was cut twice, from 5200 and 3000 steps, so its learning rate fell faster towards the end.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
RUNS=${RUNS:-runs}
FINE="optim.muon_lr=0.01 optim.lr=1e-3"

# 512 codes, on shapes at free positions (an earlier form of the nano world).
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_1" tokenizer.codebook_size=512 \
  steps=2500 kmeans_rounds=10 restart_every=25 consistency_weight=0
# 1024 codes, on today's world.
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_2" tokenizer.weights="$RUNS/nano_tokenizer_1" \
  steps=1300 kmeans_at=0 kmeans_rounds=10 restart_every=25 consistency_weight=0 $FINE
# Codes that an edit leaves alone stay the same: first strictly, then with the full codebook.
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_3" tokenizer.weights="$RUNS/nano_tokenizer_2" \
  tokenizer.codebook_size=768 steps=600 kmeans_at=0 consistency_weight=1.0 $FINE
$PYTHON -m editar.train_tokenizer output_dir="$RUNS/nano_tokenizer_4" tokenizer.weights="$RUNS/nano_tokenizer_3" \
  steps=750 kmeans_at=0 kmeans_rounds=2 $FINE
$PYTHON -m editar.train output_dir="$RUNS/nano_1" tokenizer.weights="$RUNS/nano_tokenizer_4" \
  data.train_samples=20000 steps=1900 eval_every=475
$PYTHON -m editar.train output_dir="$RUNS/nano_2" tokenizer.weights="$RUNS/nano_tokenizer_4" \
  init_from="$RUNS/nano_1" data.seed=1 data.train_samples=48000 steps=6000
# More scenes with several objects, where it still mixed up which word belongs to which object.
$PYTHON -m editar.train output_dir="$RUNS/nano_3" tokenizer.weights="$RUNS/nano_tokenizer_4" \
  init_from="$RUNS/nano_2" data.seed=2 data.train_samples=64000 'data.shape_counts=[1,2,2,3,3,3]' steps=1900 \
  optim.muon_lr=0.015 optim.lr=1.5e-3
# As many samples again; planned for 16,000 steps and set to 7,500 at step 2,645, so its learning rate fell faster from there.
$PYTHON -m editar.train output_dir="$RUNS/nano_4" tokenizer.weights="$RUNS/nano_tokenizer_4" \
  init_from="$RUNS/nano_3" data.seed=3 data.train_samples=96000 'data.shape_counts=[1,2,2,3,3,3]' steps=7500 \
  precision=bf16 optim.muon_lr=0.02 optim.lr=2e-3
$PYTHON scripts/export_run.py "$RUNS/nano_4" reference/nano
