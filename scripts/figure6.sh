#!/usr/bin/env bash
# Figure 6, the guidance ablation: one checkpoint edits the benchmark at several scales.
#
#   ROOT=PIE_BENCH bash scripts/figure6.sh checkpoints/editar-xl
#
# ROOT holds mapping_file.json and annotation_images/ (BENCHMARK=nano needs none). The judges' files:
# scripts/fetch_weights.py evaluate; without them their columns are left out.
# Restartable. Time, an estimate: at about 1 s a picture on one H200, 70 minutes of editing and some minutes of scoring
# for each scale; with LAUNCH="torchrun --nproc-per-node=8 -m" 10 minutes of editing. The official loop takes tens of
# seconds a picture, a day and a half in all.
set -euo pipefail
PYTHON=${PYTHON:-python}
LAUNCH=${LAUNCH:-$PYTHON -m}
BENCHMARK=${BENCHMARK:-pie_bench}
OUT=${OUT:-outputs/figure6}
SCALES=${SCALES:-1 1.5 2 3 5 7}
OVERRIDES=${OVERRIDES:-} # more of editar.eval's, e.g. "score_batch=32"

scored=()
for scale in $SCALES; do
  $LAUNCH editar.eval checkpoint="$1" benchmark="$BENCHMARK" root="${ROOT:-null}" method="cfg_$scale" \
    output_dir="$OUT/cfg_$scale" +sampling.cfg_scale="$scale" $OVERRIDES
  scored+=("$OUT/cfg_$scale")
done
$PYTHON "$(dirname "$0")/report.py" "${scored[@]}" --title "Figure 6: guidance" --out "$OUT/report.html"
