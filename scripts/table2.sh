#!/usr/bin/env bash
# Table 2: pictures from depth maps, edges and label maps; depth RMSE, edge SSIM, mIoU and FID beside the paper's rows.
#   CHECKPOINT=checkpoints/editar-xl DEPTH=DIR COCOSTUFF=DIR [CANNY=DIR] [GPUS=8] scripts/table2.sh [key=value ...]
# Edges are those of the depth set's pictures, as in EditAR's script. CANNY=MultiGen-20M_canny_eval takes ControlNet++'s
# set instead: with protocol=controlnet++ that is right, otherwise the row is marked as not comparable.
# Needs the checkpoint, the validation sets (docs/evaluation.md) and the scoring networks (fetch_weights.py evaluate).
# What is not given or not here is left out, with a line that says so. BASELINES (controlnet controlnet_plus_plus
# t2i_adapter t2i_adapter_seg) and OVERRIDES as in table3.sh.
# Estimate at 1 s a picture: 15,000 pictures take 4.5 hours on one GPU and 45 minutes on eight, of which scoring takes 15.
source "$(dirname "$0")/eval.sh"
DEPTH=${DEPTH-} CANNY=${CANNY-${DEPTH-}} COCOSTUFF=${COCOSTUFF-}
scored=()
[ -n "${CHECKPOINT-}" ] || left_out "our row" CHECKPOINT=RUN
for task in depth canny cocostuff; do
  root=${task^^}
  if [ -z "${!root}" ]; then
    left_out "$task" "$root=DIR"
    continue
  fi
  if [ -n "${CHECKPOINT-}" ]; then
    run_eval benchmark="$task" root="${!root}" checkpoint="$CHECKPOINT" \
      output_dir="$OUT/$task" method="${METHOD:-ours}" ${OVERRIDES-} "$@"
    scored+=("$OUT/$task")
  fi
  for name in ${BASELINES-controlnet controlnet_plus_plus t2i_adapter t2i_adapter_seg}; do
    grep -q "^benchmarks:.*$task" "configs/baseline/$name.yaml" || continue  # not for this task
    run_baseline "$name" benchmark="$task" root="${!root}" ${OVERRIDES-} output_dir="$OUT/$name/$task"
  done
done
write_report
