#!/usr/bin/env bash
# Table 1: PIE-Bench with a checkpoint and the baseline of the table that can be run here, beside the paper's rows.
#   CHECKPOINT=checkpoints/editar-xl DATA=data/pie_bench [GPUS=8] scripts/table1.sh [key=value ...]
# As table3.sh, which says more, but BASELINES is instruct_pix2pix alone; BASELINES= runs none.
# Estimate at 1 s a picture: 15 minutes on one GPU, 5 on eight, of which scoring takes 3; and an hour for the baseline.
OUT=${OUT:-outputs/table1} BASELINES=${BASELINES-instruct_pix2pix} exec "$(dirname "$0")/table3.sh" "$@"
