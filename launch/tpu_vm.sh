#!/usr/bin/env bash
# A TPU VM or a pod slice: create it, bring the code, run an experiment on all hosts, delete it.
#
#   NAME=my-pod ZONE=us-east5-b TYPE=v6e-16 launch/tpu_vm.sh [--dry-run] create|setup|run|delete
#   ... launch/tpu_vm.sh run --config=configs/betag_scientific.py:paper --workdir=/share/betag
#
# SHARE (HOST:/PATH of an NFS export, e.g. of Filestore) is mounted at /share by `setup`: all hosts
# must see the run's folder and the data. SPOT=1 asks for a machine that may be taken away; `run`
# again after that goes on from the last checkpoint. Without a pod slice a share is not needed.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }

dry=''
[ "${1:-}" = --dry-run ] && { dry=1; shift; }
verb=${1:-}
[ -n "$verb" ] && shift
name=${NAME:-recjax} zone=${ZONE:-us-east5-b} type=${TYPE:-v6e-16}
version=${VERSION:-v2-alpha-tpuv6e} share=${SHARE:-}
root=$(cd "$(dirname "$0")/.." && pwd)

do_it() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpu() { do_it gcloud compute tpus tpu-vm "$@" "--zone=$zone"; }

everywhere() { tpu ssh "$name" --worker=all "--command=$1"; }

case $verb in
  create)
    spot=()
    [ -n "${SPOT:-}" ] && spot=(--spot)
    tpu create "$name" "--accelerator-type=$type" "--version=$version" ${spot[@]+"${spot[@]}"} ;;
  setup)
    # What is committed, without runs and data.
    tar=$(mktemp -u -t recjax-XXXXXX.tar.gz)
    do_it git -C "$root" archive --format=tar.gz "--output=$tar" HEAD
    tpu scp "$tar" "$name:recjax.tar.gz" --worker=all
    do_it rm "$tar"
    everywhere 'mkdir -p ~/recjax && cd ~/recjax && tar xzf ~/recjax.tar.gz && python3 -m pip install -q -e ".[tpu,data]"'
    if [ -n "$share" ]; then
      everywhere "sudo mkdir -p /share && (mountpoint -q /share || sudo mount -t nfs $share /share)"
    fi ;;
  run)
    [ $# -gt 0 ] || usage
    printf -v flags '%q ' "$@"
    everywhere "cd ~/recjax && exec python3 -m recjax.main --multihost --watchdog=1800 $flags" ;;
  delete)
    tpu delete "$name" --quiet ;;
  *) usage ;;
esac
