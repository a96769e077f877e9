#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster (kubectl's current one), as a JobSet: fills launch/gke_jobset.yaml in and applies it.
#   bash launch/gke.sh --name fill --image IMAGE --accelerator tpu-v6e-slice --topology 2x4 [--spot] -- \
#     train --config flux_fill:dynamic_lora_512 --config.data.source=gs://BUCKET/requests --workdir gs://BUCKET/runs/fill
#   bash launch/gke.sh --name fill --logs|--down
# IMAGE is built from launch/Dockerfile. GKE's Cloud Storage FUSE driver mounts buckets named by gs:// after --; all other paths
# are in the pod and are lost with it.
#   --spot               cheaper nodes, which may be preempted at any time
#   --reservation R      nodes of a reservation
#   --flex_start         nodes of a flex-start pool, which end after at most 7 days
#   --hosts N            machines that share the chips of the slice (default: 1)
#   --restarts N         new pods after the resume loop has given up (default: 3)
#   --service_account S  Kubernetes service account with access to the bucket (default: default)
#   --data_disk C        persistent volume claim, mounted read-only at /mnt/data
#   --hf_token_secret S  secret of the cluster whose key HF_TOKEN is the token of the hub
#   --logs               prints the logs of the pods
#   --down               deletes the JobSet, with SIGTERM first, so that the training saves
#   --dry_run            prints the command with the whole manifest instead
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh

dry_run='' name='' image='' accelerator='' topology='' spot='' hosts=1 restarts=3 service_account=default action=up
reservation='' flex_start='' data_disk='' hf_token_secret=''
options 'name image accelerator topology hosts restarts service_account reservation data_disk hf_token_secret' \
  'dry_run spot flex_start' 'logs down' "$@"
set -- ${command[@]+"${command[@]}"}

[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  wrong "--name is '$name': give the JobSet a name of small letters, digits and hyphens that begins with a letter"
if [ "$action" = up ]; then
  [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || wrong "--image is '$image': give the image built from launch/Dockerfile"
  [[ $accelerator =~ ^tpu[a-z0-9-]+$ ]] ||
    wrong "--accelerator is '$accelerator': give a label of GKE's nodes, such as tpu-v5p-slice, tpu-v6e-slice or tpu7x"
  [[ $topology =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] || wrong "--topology is '$topology': give the chips along each side, such as 2x4"
  [[ $hosts =~ ^[1-9][0-9]*$ ]] || wrong "--hosts is '$hosts': give a whole number from 1"
  [[ $restarts =~ ^[0-9]+$ ]] || wrong "--restarts is '$restarts': give a whole number from 0"
  [[ $service_account =~ ^[a-z0-9][a-z0-9.-]*$ ]] || wrong "--service_account is '$service_account': give a name of the cluster"
  for claim in "$reservation" "$data_disk"; do
    [[ $claim =~ ^([a-z0-9][a-z0-9./-]*)?$ ]] || wrong "$claim is no name: give --reservation and --data_disk names of the project and the cluster"
  done
  check_secret "$hf_token_secret"
  case $spot${reservation:+yes}$flex_start in yesyes*) wrong "--spot, --reservation and --flex_start exclude each other: give one" ;; esac
  chips=$((${topology//x/*}))
  [ $((chips % hosts)) = 0 ] || wrong "$chips chips can't be shared by $hosts hosts: choose another --topology or --hosts"
  chips=$((chips / hosts))
  check_command "$@"
fi

# Prints the words as a JSON list, which YAML reads as well.
json() {
  local word list=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    list+=", \"${word//\"/\\\"}\""
  done
  echo "[${list#, }]"
}

# Fills values into a line of the manifest; the command comes last, because it may contain such a placeholder itself.
filled() {
  local line=$1 field
  for field in name image accelerator topology hosts restarts service_account reservation data_disk hf_token_secret chips index bucket command; do
    line=${line//"\${$field}"/"${!field:-}"}
  done
  echo "$line"
}

# Tests whether a line of the manifest is wanted, by the word behind its #?.
wanted() {
  case $1 in
    hosts) [ "$hosts" != 1 ] ;;
    bucket) [ -n "$buckets" ] ;;
    volumes) [ -n "$buckets$data_disk" ] ;;
    *) [ -n "${!1}" ] ;;
  esac
}

# shellcheck disable=SC2034  # `filled` reads its variables by name
manifest() {
  local line index bucket command buckets
  command=$(json "$@")
  buckets=$(buckets "$@") || true
  while IFS= read -r line; do
    case $line in
      \#*) ;;
      *' #?'*) if wanted "${line##*\#\?}"; then filled "${line% \#*}"; fi ;;
      *' #*bucket')
        index=0
        for bucket in $buckets; do
          filled "${line% \#*}"
          index=$((index + 1))
        done
        ;;
      *) filled "$line" ;;
    esac
  done <launch/gke_jobset.yaml
}

case $action in
  logs) run kubectl logs --selector="jobset.sigs.k8s.io/jobset-name=$name" --container=onereward --prefix --tail=-1 ;;
  down) run kubectl delete jobset "$name" ;;
  up)
    if [ -n "$dry_run" ]; then
      echo "kubectl apply --filename=- <<'MANIFEST'"
      manifest "$@"
      echo MANIFEST
    else
      manifest "$@" | kubectl apply --filename=-
    fi
    ;;
esac
