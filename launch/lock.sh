#!/usr/bin/env bash
# Updates constraints.txt: one pinned version of every dependency for Python 3.11 to 3.13, with all extras.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
environment test
python -m pip install --quiet uv
uv pip compile --universal --python-version 3.11 pyproject.toml --all-extras --upgrade \
  --no-annotate --no-header --quiet --output-file constraints.txt
