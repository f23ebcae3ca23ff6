#!/usr/bin/env bash
# Table 3: PIE-Bench with our checkpoint and with the baselines that can be run here, one table, one report.
#   CHECKPOINT=checkpoints/editar-xl DATA=data/pie_bench [GPUS=8] scripts/table3.sh [key=value ...]
# Needs the checkpoint (fetch_weights.py edit, convert_weights.py), PIE-Bench and the scoring networks (fetch_weights.py evaluate).
# The arguments go to our run alone (sampling.cfg_scale=2); OVERRIDES="networks.clip=null" go to every run.
# BASELINES (instruct_pix2pix magicbrush) are run through diffusers (pip install -e '.[baselines]'). One that is not
# here (fetch_weights.py baselines) is left out, as is our row without CHECKPOINT. FOLDERS
# ("mgie=DIR seed_x_edit=DIR") are pictures made elsewhere.
# Estimate: 15 minutes on one GPU for ours, and 5 s a picture for each baseline: an hour on one GPU, 8 minutes on eight.
source "$(dirname "$0")/eval.sh"
need "DATA=DIR, the folder with mapping_file.json" "${DATA-}"
common=(benchmark=pie_bench root="$DATA" ${OVERRIDES-})
scored=()
if [ -n "${CHECKPOINT-}" ]; then
  run_eval "${common[@]}" checkpoint="$CHECKPOINT" output_dir="$OUT/ours" method="${METHOD:-ours}" "$@"
  scored+=("$OUT/ours")
else
  left_out "our row" CHECKPOINT=RUN
fi
for name in ${BASELINES-instruct_pix2pix magicbrush}; do
  run_baseline "$name" "${common[@]}" output_dir="$OUT/$name"
done
for entry in ${FOLDERS-}; do
  name=${entry%%=*}
  "$PYTHON" -m editar.eval "${common[@]}" stage=score results="${entry#*=}" method="$name" output_dir="$OUT/$name"
  scored+=("$OUT/$name")
done
write_report
