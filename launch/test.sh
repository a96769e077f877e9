#!/usr/bin/env bash
# Lint, types and tests. EXTRAS=test,parity adds the comparisons with diffusers, transformers and peft
# (their torch is a large download on some machines). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment "${EXTRAS:-test}"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
ruff check .
ruff format --check .
mypy
shellcheck launch/*.sh
python -m pytest "$@"
