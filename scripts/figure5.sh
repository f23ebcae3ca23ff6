#!/usr/bin/env bash
# Figure 5, the distillation ablation: checkpoints trained without a teacher, with DINOv2 and with CLIP, side by side.
#   DATA=data/pie_bench [GPUS=8] scripts/figure5.sh without=runs/xl_none dinov2=runs/xl_dinov2 clip=runs/xl_clip
# Each NAME=FOLDER is a run folder, trained with teacher=none, dinov2 or clip. BENCHMARK=nano needs no DATA.
# Needs PIE-Bench and the scoring networks (fetch_weights.py evaluate). OVERRIDES: more of editar.eval's. Restartable.
# Estimate at 1 s a picture: 15 minutes a checkpoint on one GPU, 5 on eight, of which scoring takes 3.
source "$(dirname "$0")/eval.sh"
need "NAME=RUN of each checkpoint" "${1-}"
scored=()
for checkpoint in "$@"; do
  name=${checkpoint%%=*}
  run_eval benchmark="${BENCHMARK:-pie_bench}" root="${DATA:-null}" checkpoint="${checkpoint#*=}" method="$name" \
    output_dir="$OUT/$name" ${OVERRIDES-}
  scored+=("$OUT/$name")
done
"$PYTHON" scripts/report.py "${scored[@]}" --title "Figure 5: distillation" --out "$OUT/report.html"
