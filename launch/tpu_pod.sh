#!/usr/bin/env bash
# Trains on a Cloud TPU slice: creates or reuses the slice, installs this commit on all workers, and starts a command of
# `onereward` on them, which is resumed until it is done (launch/resume.sh).
#   bash launch/tpu_pod.sh --name fill --zone us-east5-a --type v6e-8 [--spot] [--queued] [--watch] -- \
#     train --config flux_fill:dynamic_lora_512 --config.data.source=gs://BUCKET/requests --workdir gs://BUCKET/runs/fill
#   bash launch/tpu_pod.sh --name fill --zone us-east5-a --logs|--stop|--down [--queued]
# Running the same command again reuses the slice, or replaces a preempted one. Buckets named by gs:// after -- are mounted
# by gcsfuse; other paths are on the disks of the workers, which --down deletes.
#   --watch              stays until the command is done: replaces the slice whenever it is taken away, gives up when the
#                        command itself fails, deletes the slice at the end (launch/watch.sh); --workdir is in a bucket
#   --spot               cheaper, may be preempted at any time
#   --reserved           from the project's reservation
#   --flex_start TIME    a queued resource that ends after TIME, such as 12h (at most 7d)
#   --queued             requests a queued resource and waits; give it with --down as well, and for --flex_start
#   --project P          instead of gcloud's default project
#   --runtime_version V  instead of the usual one for the type
#   --service_account A  e-mail of the account that the workers act as, instead of Compute Engine's default
#   --network N          and
#   --subnetwork S       instead of the default ones
#   --data_disk D        projects/P/zones/Z/disks/D, mounted read-only at /mnt/data on every worker
#   --hf_token_secret S  name of a secret of Secret Manager, which the workers read into HF_TOKEN
#   --logs               prints the logs of the workers, each line after the worker's name
#   --stop               stops the training, which saves first; the slice stays and is billed
#   --down               deletes the slice
#   --dry_run            prints every command instead, as for a new slice
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh
source launch/watch.sh

dry_run='' name='' zone='' type='' project='' runtime_version='' spot='' queued='' action=up
watch='' reserved='' flex_start='' service_account='' network='' subnetwork='' data_disk='' hf_token_secret=''
options 'name zone type project runtime_version flex_start service_account network subnetwork data_disk hf_token_secret' \
  'dry_run spot queued reserved watch' 'logs stop down' "$@"
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
  case $spot$reserved${flex_start:+yes} in yesyes*) wrong "--spot, --reserved and --flex_start exclude each other: give one" ;; esac
  [[ $flex_start =~ ^([0-9]+[smhd])*$ ]] || wrong "--flex_start is '$flex_start': give how long the slice may run, such as 12h"
  [[ $service_account =~ ^([^@]+@[^@]+)?$ ]] || wrong "--service_account is '$service_account': give its e-mail address"
  [[ $data_disk =~ ^(projects/[^/,]+/zones/[^/,]+/disks/[^/,]+)?$ ]] ||
    wrong "--data_disk is '$data_disk': give the full path, projects/PROJECT/zones/ZONE/disks/DISK"
  check_secret "$hf_token_secret"
  check_command "$@"
  [ -z "$watch" ] || [[ " $*" =~ \ --workdir[=\ ]gs:// ]] ||
    wrong "--watch needs --workdir in a bucket, gs://BUCKET/...: a slice that is made anew has empty disks"
fi

tpus=(gcloud compute tpus)
creates=("${tpus[@]}")
if [ -n "$queued$flex_start" ]; then
  kind=(queued-resources) state=state.state version=--runtime-version
  create_flags=(--node-id="$name") delete_flags=(--force)
else
  kind=(tpu-vm) state=state version=--version
  create_flags=() delete_flags=()
fi
[ -z "$spot" ] || create_flags+=(--spot)
[ -z "$reserved" ] || create_flags+=(--reserved)
if [ -n "$flex_start" ]; then
  creates=(gcloud alpha compute tpus)
  create_flags+=(--provisioning-model=flex-start --max-run-duration="$flex_start")
fi
[ -z "$service_account" ] || create_flags+=(--service-account="$service_account")
[ -z "$network" ] || create_flags+=(--network="$network")
[ -z "$subnetwork" ] || create_flags+=(--subnetwork="$subnetwork")
[ -z "$data_disk" ] || create_flags+=(--data-disk="source=$data_disk,mode=read-only")

on_workers() {
  run "${tpus[@]}" tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"
}

list() {
  run "${tpus[@]}" "${kind[@]}" list "${where[@]}" --filter="name~/$name\$" --format="value($state)"
}

create() {
  run "${creates[@]}" "${kind[@]}" create "$name" "${where[@]}" --accelerator-type="$type" \
    "$version=${runtime_version:-$usual}" ${create_flags[@]+"${create_flags[@]}"}
}

delete() {
  run "${tpus[@]}" "${kind[@]}" delete "$name" "${where[@]}" ${delete_flags[@]+"${delete_flags[@]}"} --quiet
}

say() {
  echo "tpu_pod.sh: $*" >&2
}

pause() {
  sleep "${TPU_POD_PAUSE:-60}"
}

# Returns when the slice is ready; 1 if it can't be had, which it or gcloud says. The argument, a command, is run before it
# tries once more where time may help: no capacity, preempted while it was made, no connection. Without one it gives up.
slice() {
  local found made='' again=${1:-false} answer=runs/$name.create
  if [ -n "$dry_run" ]; then
    list
    echo "# If that prints nothing:"
    create
    return
  fi
  while true; do
    if ! found=$(list); then
      "$again" || return
      continue
    fi
    case $found in
      READY | ACTIVE) return ;;
      '')
        mkdir -p runs
        if create 2>&1 | tee "$answer" >&2; then
          made=yes
        else
          grep -qE 'no more capacity|nsufficient.* capacity' "$answer" && "$again" || return 1
        fi
        ;;
      PREEMPTED | TERMINATED | FAILED | SUSPENDED)
        if [ -n "$made" ] && { [ "$found" = FAILED ] || ! "$again"; }; then
          say "$name was $found right after it was created: \`$(quoted "${tpus[@]}" "${kind[@]}" describe "$name" "${where[@]}")\` says why"
          return 1
        fi
        delete || return
        ;;
      STOPPED) run "${tpus[@]}" tpu-vm start "$name" "${where[@]}" || return ;;
      *)
        say "$name is $found: checking again in ${TPU_POD_PAUSE:-60} s"
        pause
        ;;
    esac
  done
}

# Installs this commit on the workers and starts the command there.
start() {
  run mkdir -p runs
  run git archive --output="runs/$name.tar.gz" HEAD || return
  run "${tpus[@]}" tpu-vm scp "runs/$name.tar.gz" "$name:onereward.tar.gz" "${where[@]}" --worker=all || return
  local prepare='' secret=''
  [ -z "$(buckets "$@")" ] || prepare+='bash launch/gcsfuse.sh && '
  [ -z "$data_disk" ] || prepare+='bash launch/data_disk.sh && '
  [ -z "$hf_token_secret" ] || secret="HF_TOKEN_SECRET=$hf_token_secret "
  # Check first, so as not to replace the code of a running training.
  on_workers "mkdir -p onereward && cd onereward && { [ ! -e launch/background.sh ] || bash launch/background.sh idle; } && tar -xzf ../onereward.tar.gz && ${prepare}bash launch/tpu.sh --install $(quoted "$@")" || return
  on_workers "${secret}bash onereward/launch/background.sh start bash launch/tpu.sh $(quoted "$@")"
}

case $action in
  logs) on_workers "sed \"s/^/\$(hostname): /\" onereward/run.log" ;;
  stop) on_workers "bash onereward/launch/background.sh stop" ;;
  down) delete ;;
  up)
    if [ -z "$dry_run" ] && [ -n "$(git status --porcelain)" ]; then
      say "the workers get the last commit, without uncommitted changes"
    fi
    if [ -n "$watch" ] && [ -z "$dry_run" ]; then
      watch "$@"
    else
      slice
      start "$@"
    fi
    ;;
esac
