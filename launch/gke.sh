#!/usr/bin/env bash
# One experiment on a TPU slice of GKE, through a JobSet (gke_jobset.yaml beside this file).
#
#   IMAGE=REGISTRY/recjax:1 launch/gke.sh [--dry-run] run --config=... --workdir=/share/run
#   launch/gke.sh [--dry-run] logs|delete
#
# NAME, HOSTS, CHIPS (of a host), ACCELERATOR, TOPOLOGY, CLAIM (a ReadWriteMany volume, /share in
# the pods) come from the environment. --dry-run prints what would be sent.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }

dry=''
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
verb=${1:-}
[ -n "$verb" ] && shift
name=${NAME:-recjax}
here=$(cd "$(dirname "$0")" && pwd)

do_it() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

# The flags as a YAML list of double-quoted strings.
quoted() {
  local out='' one
  for one in "$@"; do
    one=${one//\\/\\\\}
    one=${one//\"/\\\"}
    out+=", \"$one\""
  done
  echo "[${out#, }]"
}

# The template with its marks filled in; values may hold any character.
filled() {
  local text key
  text=$(<"$here/gke_jobset.yaml")
  local -A values=(
    [NAME]=$name [HOSTS]=${HOSTS:-4} [CHIPS]=${CHIPS:-4} [IMAGE]=$IMAGE
    [ACCELERATOR]=${ACCELERATOR:-tpu-v6e-slice} [TOPOLOGY]=${TOPOLOGY:-4x4}
    [CLAIM]=${CLAIM:-recjax} [FLAGS]=$(quoted "$@"))
  for key in "${!values[@]}"; do
    text=${text//"@$key@"/"${values[$key]}"}
  done
  printf '%s\n' "$text"
}

case $verb in
  run)
    [ $# -gt 0 ] || usage
    : "${IMAGE:?name the container image that holds recjax, e.g. IMAGE=REGISTRY/recjax:1}"
    if [ -n "$dry" ]; then filled "$@"; else filled "$@" | kubectl apply -f -; fi ;;
  logs) do_it kubectl logs --follow "--selector=jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0" ;;
  delete) do_it kubectl delete jobset "$name" ;;
  *) usage ;;
esac
