#!/usr/bin/env bash
# The quick run on a laptop: reward feedback learning (Algorithm 2) in miniature, then the report.
# Arguments are overrides, for example: bash launch/local.sh --config.train.num_steps=200
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment
onereward train --config configs/tiny.py:quick --workdir runs/quick "$@"
onereward evaluate --config configs/tiny.py:quick --workdir runs/quick "$@"
echo "Open runs/quick/report.html"
