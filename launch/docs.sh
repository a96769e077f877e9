#!/usr/bin/env bash
# Builds the site into docs/_build; a warning is an error. --dry_run prints every command instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
dry_run=''
case ${1:-} in
  '') ;;
  --dry_run) dry_run=yes ;;
  *) wrong "there is no option $1: --dry_run is the only one" ;;
esac
environment docs
run python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build
[ -n "$dry_run" ] || echo "Open docs/_build/index.html"
