#!/usr/bin/env bash
# Figure 5, the distillation ablation: checkpoints trained without a teacher, with DINOv2 and with CLIP, side by side.
#
#   ROOT=PIE_BENCH bash scripts/figure5.sh without=runs/xl_none dinov2=runs/xl_dinov2 clip=runs/xl_clip
#
# Each NAME=FOLDER is a run folder or converted checkpoint; they are trained with teacher=none, teacher=dinov2 and
# teacher=clip. ROOT holds mapping_file.json and annotation_images/ (BENCHMARK=nano needs none). The judges' files:
# scripts/fetch_weights.py evaluate; without them their columns are left out.
# Restartable. Time, an estimate: at about 1 s a picture on one H200, 12 minutes of editing and some minutes of scoring
# for each checkpoint; with LAUNCH="torchrun --nproc-per-node=8 -m" 2 minutes of editing. The official loop takes tens
# of seconds a picture.
set -euo pipefail
PYTHON=${PYTHON:-python}
LAUNCH=${LAUNCH:-$PYTHON -m}
BENCHMARK=${BENCHMARK:-pie_bench}
OUT=${OUT:-outputs/figure5}
OVERRIDES=${OVERRIDES:-} # more of editar.eval's, e.g. "score_batch=32 +sampling.cfg_scale=3"

scored=()
for checkpoint in "$@"; do
  name=${checkpoint%%=*}
  $LAUNCH editar.eval checkpoint="${checkpoint#*=}" benchmark="$BENCHMARK" root="${ROOT:-null}" method="$name" \
    output_dir="$OUT/$name" $OVERRIDES
  scored+=("$OUT/$name")
done
$PYTHON "$(dirname "$0")/report.py" "${scored[@]}" --title "Figure 5: distillation" --out "$OUT/report.html"
