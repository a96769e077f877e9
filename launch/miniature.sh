#!/usr/bin/env bash
# Makes the packaged models in miniature/ from nothing: hours on two cores. Every stage goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment
runs=runs/miniature
onereward train-vae --config configs/tiny.py:vae --workdir $runs/vae
onereward train-base --config configs/tiny.py:base --workdir $runs/base
onereward package --base $runs/base/export --out miniature
onereward gates --config configs/tiny.py:quick --workdir $runs/gates
onereward make-preferences --config configs/tiny.py:judge --workdir $runs/preferences
onereward train-judge --config configs/tiny.py:judge --workdir $runs/judge
onereward package --judge $runs/judge/export --out miniature
