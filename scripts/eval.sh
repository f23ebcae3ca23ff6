# Sourced by the table and figure scripts: `run_eval key=value ...` is `editar.eval` on GPUS processes.
#   GPUS    processes of torchrun (1)      PYTHON  interpreter (.venv/bin/python)      OUT  results (outputs/NAME)
# Relative paths count from the repository's root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-1}
[[ $GPUS =~ ^[1-9][0-9]*$ ]] || { echo "$0: GPUS=$GPUS: give the number of GPUs" >&2; exit 2; }
OUT=${OUT:-outputs/$(basename "$0" .sh)}

# `need WHAT "$VALUE"`: ends here, saying what is to be given, where it is not.
need() {
  [ -n "${2-}" ] || { echo "$0: give $1" >&2; exit 2; }
}

run_eval() {
  if [ "$GPUS" -gt 1 ]; then
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$GPUS" -m editar.eval "$@"
  else
    "$PYTHON" -m editar.eval "$@"
  fi
}

# `run_baseline NAME key=value ... output_dir=FOLDER` adds FOLDER to `scored`, or says why it cannot be run here.
run_baseline() {
  if HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} run_eval baseline="$@"; then
    scored+=("${@: -1}")
    scored[-1]=${scored[-1]#output_dir=}
  else
    echo "baseline $1 is left out of the table: the line above says what is missing" >&2
  fi
}

# The table and the page of all that was scored.
write_report() {
  if [ "${#scored[@]}" -eq 0 ]; then
    echo "nothing was scored: the lines above say what is missing" >&2
    exit 2
  fi
  "$PYTHON" scripts/report.py "${scored[@]}" --out "$OUT/report.html"
}

# `left_out WHAT VARIABLE`: says that WHAT needs the variable, which is not set.
left_out() {
  echo "$1 is left out of the table: give $2" >&2
}
