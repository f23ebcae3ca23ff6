#!/usr/bin/env bash
# The paper's training on one node: GPT-XL at 512 px, 40,000 steps of 64 samples, five data sets.
#   [GPUS=8] [CACHE=caches/editar] scripts/train_editar_xl.sh output_dir=runs/xl [key=value ...]
# Needs the data under data/ (docs/data.md) and the weights of `fetch_weights.py train`. CACHE: the folder that
# cache_codes.py made; without it every step encodes its pictures. The same command continues a run that was stopped
# or lost a GPU; SIGTERM makes it save first. About 8 hours on eight A100s at 40 % MFU, by arithmetic (dry_run=true).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python} GPUS=${GPUS:-8}
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || { echo "$0: GPUS=$GPUS: give the number of GPUs" >&2; exit 2; }
ARGUMENTS=(experiment=editar_xl tokenizer.weights=checkpoints/vq_ds16_t2i.pt compile=true keep_every=10000)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}  # seconds to save after SIGTERM
[ -z "${CACHE:-}" ] || ARGUMENTS+=(data.cache="$CACHE")
exec "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$GPUS" --max-restarts=3 \
  -m editar.train "${ARGUMENTS[@]}" "$@"
