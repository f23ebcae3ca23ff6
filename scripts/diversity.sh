#!/usr/bin/env bash
# Sample diversity: one checkpoint edits the benchmark with several seeds, all results of a source side by side.
#   DATA=data/pie_bench [GPUS=8] scripts/diversity.sh checkpoints/editar-xl [key=value ...]
# SEEDS: the values of sampling.seed. BENCHMARK=nano needs no DATA. Restartable. IDS: which pictures the figure shows.
# Needs PIE-Bench and the scoring networks (fetch_weights.py evaluate). Estimate: table 1's time for each seed.
source "$(dirname "$0")/eval.sh"
need "a run folder" "${1-}"
checkpoint=$1
shift
scored=()
for seed in ${SEEDS:-0 1 2 3}; do
  run_eval benchmark="${BENCHMARK:-pie_bench}" root="${DATA:-null}" checkpoint="$checkpoint" method="seed_$seed" \
    output_dir="$OUT/seed_$seed" sampling.seed="$seed" "$@"
  scored+=("$OUT/seed_$seed")
done
"$PYTHON" scripts/report.py "${scored[@]}" --title "Sample diversity" --out "$OUT/report.html"
"$PYTHON" scripts/figure_examples.py "${scored[@]}" ${IDS:+--ids $IDS} --out "$OUT/examples.png"
