#!/usr/bin/env bash
# Like launch/gpu.sh, on a machine with TPUs, such as a worker of a slice (launch/tpu_pod.sh) or a GKE pod (launch/gke.sh).
#   bash launch/tpu.sh train --config flux_fill:dynamic_lora_512 --config.data.source=gs://BUCKET/requests --workdir gs://BUCKET/runs/fill
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/machine.sh
machine tpu "$@"
