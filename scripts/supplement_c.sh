#!/usr/bin/env bash
# Supplement C: FID of pictures from depth maps, edges and label maps, with and without distillation, beside the paper's.
#   DEPTH=DIR COCOSTUFF=DIR [CANNY=DIR] [GPUS=8] scripts/supplement_c.sh without=runs/xl_none dinov2=runs/xl_dinov2
# Each NAME=FOLDER is a run folder. CANNY is DEPTH unless given. OVERRIDES: more of editar.eval's. Restartable.
# Needs the validation sets (docs/evaluation.md) and Inception (fetch_weights.py inception_fid). Time: table 2's for each.
source "$(dirname "$0")/eval.sh"
need "DEPTH=DIR, MultiGen-20M_depth_eval" "${DEPTH-}"
need "COCOSTUFF=DIR, Captioned_COCOStuff" "${COCOSTUFF-}"
need "NAME=RUN of each checkpoint" "${1-}"
CANNY=${CANNY:-$DEPTH}
scored=()
for checkpoint in "$@"; do
  name=${checkpoint%%=*}
  for task in depth canny cocostuff; do
    root=${task^^}
    run_eval benchmark="$task" root="${!root}" checkpoint="${checkpoint#*=}" method="$name" \
      output_dir="$OUT/$name/$task" networks.depth=null networks.segmenter=null ${OVERRIDES-}
    scored+=("$OUT/$name/$task")
  done
done
"$PYTHON" scripts/report.py "${scored[@]}" --title "Supplement C: distillation and FID" --out "$OUT/report.html"
