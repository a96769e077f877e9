#!/usr/bin/env bash
# Lint, format, types and tests. Arguments go to pytest, for example: bash launch/test.sh tests/rl
#   --fast, before them      leaves the slow tests out (SLOW in tests/conftest.py): under 90 seconds
#   --hostile, before them   runs the long form of tests/hostile alone, an hour or more (docs/reference/hostile.md), for
#                            example: bash launch/test.sh --hostile -k kills
# EXTRAS=test,parity adds the comparisons with diffusers, transformers and peft
# (their torch is a large download on some machines).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
chosen=()
case ${1:-} in
  -h | --help) usage ;;
  --fast)
    chosen=(-m 'not slow')
    shift
    ;;
  --hostile)
    export ONEREWARD_HOSTILE=long
    shift
    [[ " $*" == *" tests/"* ]] || chosen=(tests/hostile)
    ;;
esac
environment "${EXTRAS:-test}"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
ruff check .
ruff format --check .
mypy
shellcheck launch/*.sh
python -m pytest ${chosen[@]+"${chosen[@]}"} "$@"
