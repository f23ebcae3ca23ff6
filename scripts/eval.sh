# Sourced by the table and figure scripts: `run_eval key=value ...` is `editar.eval` on GPUS processes.
#   GPUS    processes of torchrun (1)      PYTHON  interpreter (.venv/bin/python)      OUT  results (outputs/NAME)
# Relative paths count from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-1}
OUT=${OUT:-outputs/$(basename "$0" .sh)}

run_eval() {
  if [ "$GPUS" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$GPUS" -m editar.eval "$@"
  else
    "$PYTHON" -m editar.eval "$@"
  fi
}
