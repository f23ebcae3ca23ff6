#!/usr/bin/env bash
# Figure 6, the guidance ablation: one checkpoint edits the benchmark at several scales.
#   DATA=data/pie_bench [GPUS=8] scripts/figure6.sh checkpoints/editar-xl
# SCALES: the values of cfg_scale. BENCHMARK=nano needs no DATA. OVERRIDES: more of editar.eval's. Restartable.
# Needs PIE-Bench and the scoring networks (fetch_weights.py evaluate).
# Estimate at 1 s a picture: 15 minutes a scale on one GPU, 5 on eight, of which scoring takes 3.
source "$(dirname "$0")/eval.sh"
need "a run folder" "${1-}"
scored=()
for scale in ${SCALES:-1 1.5 2 3 5 7}; do
  run_eval benchmark="${BENCHMARK:-pie_bench}" root="${DATA:-null}" checkpoint="$1" method="cfg_$scale" \
    output_dir="$OUT/cfg_$scale" sampling.cfg_scale="$scale" ${OVERRIDES-}
  scored+=("$OUT/cfg_$scale")
done
"$PYTHON" scripts/report.py "${scored[@]}" --title "Figure 6: guidance" --out "$OUT/report.html"
