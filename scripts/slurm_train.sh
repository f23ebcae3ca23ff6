#!/usr/bin/env bash
# The paper's training on several nodes under Slurm: the command of train_editar_xl.sh, once a node.
#   sbatch --nodes=4 scripts/slurm_train.sh output_dir=/shared/runs/xl [key=value ...]
# Submit from the repository, which all nodes must see, as they must output_dir. Before the time limit Slurm sends
# SIGTERM, the run saves and the job queues itself again; --requeue does the same after a preemption.
#SBATCH --job-name=editar
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
PYTHON=${PYTHON:-.venv/bin/python}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=540  # seconds from SIGTERM to SIGKILL; older torchruns always take 30
[ -n "${SLURM_JOB_NODELIST:-}" ] || { echo "$0: start this with sbatch, not with bash" >&2; exit 2; }
MASTER=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run --nnodes="$SLURM_NNODES" --nproc-per-node=8 \
  --rdzv-backend=c10d --rdzv-endpoint="$MASTER:29500" --rdzv-id="$SLURM_JOB_ID" --max-restarts=3 \
  -m editar.train experiment=editar_xl tokenizer.weights=checkpoints/vq_ds16_t2i.pt compile=true keep_every=10000 "$@" &

# Ten minutes before the time limit Slurm sends SIGTERM to this shell: pass it on to the training, wait until it has saved,
# and queue the job again.
trap 'kill -TERM $!; wait $! || true; scontrol requeue "$SLURM_JOB_ID"; exit 0' TERM
wait $!
