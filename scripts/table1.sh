#!/usr/bin/env bash
# Table 1: edit PIE-Bench with a checkpoint, score it, print it beside the paper's rows.
#   CHECKPOINT=checkpoints/editar-xl DATA=data/pie_bench [GPUS=8] scripts/table1.sh [key=value ...]
# Needs the checkpoint (fetch_weights.py edit, convert_weights.py), PIE-Bench and the scoring networks (fetch_weights.py evaluate).
# Estimate at 1 s a picture: 15 minutes on one GPU, 5 on eight, of which scoring takes 3.
source "$(dirname "$0")/eval.sh"
run_eval benchmark=pie_bench root="${DATA:?the folder with mapping_file.json}" checkpoint="${CHECKPOINT:?a run folder}" \
  output_dir="$OUT" method="${METHOD:-ours}" "$@"
"$PYTHON" scripts/report.py "$OUT" --out "$OUT/report.html"
