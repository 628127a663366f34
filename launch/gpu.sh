#!/usr/bin/env bash
# One machine with one or more GPUs: a single process holds all cards.
#
#   launch/gpu.sh [--dry-run] --config=configs/betag_scientific.py:paper --workdir=checkpoints/run
#
# A step that hangs for half an hour ends the process, which is started again, at most RETRIES (3)
# times; it goes on from the last checkpoint. SIGTERM has it save and leave.
set -euo pipefail

dry=''
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
[ $# -gt 0 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }

# Communication overlaps with computation; memory up to the card's end, as nothing else runs here.
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
command=(python -m recjax.main --watchdog=1800 "$@")
if [ -n "$dry" ]; then
  printf 'XLA_FLAGS=%q XLA_PYTHON_CLIENT_MEM_FRACTION=%q ' "$XLA_FLAGS" "$XLA_PYTHON_CLIENT_MEM_FRACTION"
  printf '%q ' "${command[@]}"
  echo
  exit 0
fi

for ((try = 0; ; try++)); do
  code=0
  "${command[@]}" &
  child=$!
  trap 'kill -TERM "$child"' TERM INT
  wait "$child" || code=$?
  # The trap ends the first wait; the second one has the process's own code.
  if kill -0 "$child" 2>/dev/null; then code=0; wait "$child" || code=$?; fi
  trap - TERM INT
  [ "$code" = 75 ] && [ "$try" -lt "${RETRIES:-3}" ] || exit "$code"
  echo "a step hung; starting again ($((try + 1)))" >&2
done
