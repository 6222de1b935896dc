#!/usr/bin/env bash
# Ray on this node until it is told TERM: node.sh [OPTION OF ray start]...
set -euo pipefail
session=$(mktemp -d /tmp/cohort-XXXXXX) # this user's only, and short, as paths of sockets must be
trap 'rm -rf "$session"' EXIT
ray start "$@" --num-cpus="$SLURM_CPUS_ON_NODE" --temp-dir="$session/r" --block &
ray=$!
trap 'kill "$ray"' TERM
wait "$ray" || wait "$ray"
