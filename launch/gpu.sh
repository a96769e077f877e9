#!/usr/bin/env bash
# Installs on a machine with GPUs, then runs a command of `onereward` and resumes it until it is done (launch/resume.sh).
#   bash launch/gpu.sh train --config flux_fill:dynamic_lora_512 --config.data.source=REQUESTS --workdir runs/fill
# --dry_run prints every command instead, as on a new machine; --install only installs. Paths are local, or gs://BUCKET/...
# anywhere in the arguments: the bucket is then mounted at gs/BUCKET with gcsfuse.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/machine.sh
machine gpu "$@"
