#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates or reuses the slice, installs this commit on all workers, and starts a command of
# `onereward` on them, which is resumed until it is done (launch/resume.sh).
#   bash launch/tpu_pod.sh --name fill --zone us-east5-a --type v6e-8 [--spot] [--queued] -- \
#     train --config flux_fill:dynamic_lora_512 --workdir gs://BUCKET/runs/fill
#   bash launch/tpu_pod.sh --name fill --zone us-east5-a --logs|--stop|--down [--queued]
# Running the same command again reuses the slice, or replaces a preempted one. Buckets named by gs:// after -- are mounted
# by gcsfuse; other paths are on the disks of the workers, which --down deletes.
#   --spot             cheaper, may be preempted at any time
#   --queued           requests a queued resource and waits; give it with --down as well
#   --project P        instead of gcloud's default project
#   --runtime_version  instead of the usual one for the type
#   --logs             prints the logs of the workers, each line after the worker's name
#   --stop             stops the training, which saves first; the slice stays and is billed
#   --down             deletes the slice
#   --dry_run          prints every command instead, as for a new slice
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh

dry_run='' name='' zone='' type='' project='' runtime_version='' spot='' queued='' action=up
options 'name zone type project runtime_version' 'dry_run spot queued' 'logs stop down' "$@"
set -- ${command[@]+"${command[@]}"}

[[ $name =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
  wrong "--name is '$name': give the slice a name of small letters, digits and hyphens that begins with a letter"
[ -n "$zone" ] || wrong "--zone is missing, such as us-east5-a"
where=(--zone="$zone")
[ -z "$project" ] || where+=(--project="$project")

if [ "$action" = up ]; then
  case $type in
    v4-*) usual=tpu-ubuntu2204-base ;;
    v5litepod-*) usual=v2-alpha-tpuv5-lite ;;
    v5p-*) usual=v2-alpha-tpuv5 ;;
    v6e-*) usual=v2-alpha-tpuv6e ;;
    '') wrong "--type is missing, such as v5p-8" ;;
    tpu7x* | v7*) wrong "TPU VMs end with v6e: launch/gke.sh takes TPU7x" ;;
    *) wrong "there is no type $type: give one such as v5litepod-8, v5p-8 or v6e-8" ;;
  esac
  check_command "$@"
fi

tpus=(gcloud compute tpus)
if [ -n "$queued" ]; then
  kind=(queued-resources) state=state.state version=--runtime-version
  create_flags=(--node-id="$name") delete_flags=(--force)
else
  kind=(tpu-vm) state=state version=--version
  create_flags=() delete_flags=()
fi

on_workers() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

list() {
  run "${tpus[@]}" "${kind[@]}" list "${where[@]}" --filter="name~/$name\$" --format="value($state)"
}

create() {
  run "${tpus[@]}" "${kind[@]}" create "$name" ${create_flags[@]+"${create_flags[@]}"} "${where[@]}" --accelerator-type="$type" \
    "$version=${runtime_version:-$usual}" ${spot:+--spot}
}

delete() {
  run "${tpus[@]}" "${kind[@]}" delete "$name" "${where[@]}" ${delete_flags[@]+"${delete_flags[@]}"} --quiet
}

# Returns when the slice is ready.
slice() {
  local found made=''
  if [ -n "$dry_run" ]; then
    list
    echo "# If that prints nothing:"
    create
    return
  fi
  while true; do
    found=$(list)
    case $found in
      READY | ACTIVE) return ;;
      '')
        create
        made=yes
        ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDED)
        if [ -n "$made" ]; then
          echo "tpu_pod.sh: $name was $found right after it was created: \`$(quoted "${tpus[@]}" "${kind[@]}" describe "$name" "${where[@]}")\` says why" >&2
          exit 1
        fi
        delete
        ;;
      STOPPED) run "${tpus[@]}" tpu-vm start "$name" "${where[@]}" ;;
      *)
        echo "tpu_pod.sh: $name is $found: checking again in ${TPU_POD_PAUSE:-60} s" >&2
        sleep "${TPU_POD_PAUSE:-60}"
        ;;
    esac
  done
}

case $action in
  logs) on_workers "sed \"s/^/\$(hostname): /\" onereward/run.log" ;;
  stop) on_workers "bash onereward/launch/background.sh stop" ;;
  down) delete ;;
  up)
    if [ -z "$dry_run" ] && [ -n "$(git status --porcelain)" ]; then
      echo "tpu_pod.sh: the workers get the last commit, without uncommitted changes" >&2
    fi
    slice
    run mkdir -p runs
    run git archive --output="runs/$name.tar.gz" HEAD
    run "${tpus[@]}" tpu-vm scp "runs/$name.tar.gz" "$name:onereward.tar.gz" "${where[@]}" --worker=all
    # Check first, so as not to replace the code of a running training.
    gcsfuse=''
    [ -z "$(buckets "$@")" ] || gcsfuse='bash launch/gcsfuse.sh && '
    on_workers "mkdir -p onereward && cd onereward && { [ ! -e launch/background.sh ] || bash launch/background.sh idle; } && tar -xzf ../onereward.tar.gz && ${gcsfuse}bash launch/tpu.sh --install $(quoted "$@")"
    on_workers "bash onereward/launch/background.sh start bash launch/tpu.sh $(quoted "$@")"
    ;;
esac
