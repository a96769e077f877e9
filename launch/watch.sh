# Sourced by tpu_pod.sh: `watch COMMAND...` keeps a slice with the command on it until the command is done.
#
# A slice that is taken away (preempted, ended, gone) is made anew, however often: the command resumes from its checkpoint in
# the bucket. Where there is no capacity, it waits. A command that ends with 2, 3, 126 or 127 would do so again, and ends the
# watch. So do TPU_POD_TRIES=3 lives in a row that failed otherwise, each within TPU_POD_QUICK=3600 seconds: the slice could not
# be had, the installation failed, or the resume loop on a worker gave up. At the end, either way, the workers' logs are in
# runs/NAME.log and the slice is deleted. A signal ends the watch alone: the same command watches the slice again. A slice on which another command is running is left
# alone.
# shellcheck disable=SC2154  # `name` is tpu_pod.sh's

watch() {
  local failures=0 began outcome
  list >/dev/null || exit # a wrong zone or project, or no login
  trap 'say "the slice and the command on it go on and are billed: the same command watches them again, --down deletes them"; exit 130' INT TERM
  while true; do
    began=$SECONDS
    life "$@"
    case $outcome in
      taken) say "$name was taken away after $((SECONDS - began)) s: making it anew" ;;
      0 | 2 | 3 | 126 | 127) end "$outcome" "the command ended with exit code $outcome" ;;
      *)
        if [ $((SECONDS - began)) -lt "${TPU_POD_QUICK:-3600}" ]; then failures=$((failures + 1)); else failures=1; fi
        if [ "$failures" -ge "${TPU_POD_TRIES:-3}" ]; then
          end 1 "$outcome, the last of $failures quick failures in a row that were no preemption"
        fi
        say "$outcome: trying once more on a new slice"
        keep_logs
        delete || say "$name could not be deleted"
        ;;
    esac
    pause
  done
}

# One life of the slice: leaves in `outcome` the command's exit code, `taken`, or why it failed.
life() {
  local unanswered=0 answer
  outcome='the slice could not be had'
  slice pause || return 0
  outcome='the command could not be started'
  case $(answers "$@") in
    *other*) wrong "another command is running on $name: watch that one, or end it by --stop first" ;;
    *running* | *ended*) say "the command is on $name already: watching it" ;;
    *) if ! start "$@"; then
      if taken; then outcome=taken; fi
      return 0
    fi ;;
  esac
  while true; do
    pause
    if taken; then
      outcome=taken
      return 0
    fi
    answer=$(answers "$@")
    case $answer in
      '')
        unanswered=$((unanswered + 1))
        if [ "$unanswered" -ge 10 ]; then
          outcome='the workers did not answer ten times in a row'
          return 0
        fi
        ;;
      *other*) wrong "another command was started on $name: watch that one" ;;
      *running*) unanswered=0 ;; # the others wait for it, or run the command again
      *lost* | *none*)
        outcome='a worker lost the command, as by a restart'
        return 0
        ;;
      *)
        # The first failure of a worker says more than the success of another.
        outcome=$(grep -v '^ended 0$' <<<"$answer" | head -n 1) || true
        outcome=${outcome:-ended 0}
        case ${outcome#ended } in
          0 | 2 | 3 | 126 | 127) outcome=${outcome#ended } ;;
          *) outcome="the command gave up with exit code ${outcome#ended }" ;;
        esac
        return 0
        ;;
    esac
  done
}

# What each worker's background.sh says of this command; nothing where the workers can't be reached.
answers() {
  local said
  said=$(on_workers "cd onereward 2>/dev/null && bash launch/background.sh state bash launch/tpu.sh $(quoted "$@") || echo none" 2>/dev/null) || return 0
  grep -xE 'running|other|lost|none|ended [0-9]+' <<<"$said" || true
}

# Tests whether the slice is gone or going; not if gcloud does not say.
taken() {
  local found
  found=$(list) || return 1
  case $found in
    '' | PREEMPTED | TERMINATED | SUSPENDING | SUSPENDED | DELETING) return 0 ;;
    *) return 1 ;;
  esac
}

keep_logs() {
  mkdir -p runs
  on_workers "sed \"s/^/\$(hostname): /\" onereward/run.log" >"runs/$name.log" 2>/dev/null || say "the workers' logs could not be read"
}

# Tidies up and ends with a code.
end() {
  keep_logs
  say "$2; the workers' logs are in runs/$name.log"
  delete || say "$name could not be deleted and is billed: run this script with --down"
  exit "$1"
}
