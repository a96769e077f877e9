#!/usr/bin/env bash
# Runs reward feedback learning (Algorithm 2) in miniature on a laptop, then writes the report.
# Arguments are overrides, for example: bash launch/local.sh --config.train.num_steps=200
# --dry_run before them prints every command instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
dry_run=''
if [ "${1:-}" = --dry_run ]; then
  dry_run=yes
  shift
fi
environment
run onereward train --config quick --workdir runs/quick "$@"
run onereward evaluate --config quick --workdir runs/quick "$@"
[ -n "$dry_run" ] || echo "Open runs/quick/report.html"
