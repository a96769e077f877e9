#!/usr/bin/env bash
# Runs a command, and runs it again when it was killed or crashed: a training resumes from its newest checkpoint.
#   bash launch/resume.sh onereward train --config quick --workdir runs/quick
# Stops, with the command's exit code, after 0 (done), 2 (wrong input), 3 (does not fit), 126 or 127 (no such command); after
# RESUME_TRIES=5 failures in a row, each within RESUME_QUICK=600 seconds; and after SIGTERM or Ctrl-C, which it passes on
# to the command, so that it saves. Waits RESUME_PAUSE=10 seconds before it runs the command again.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
source launch/run.sh

tries=${RESUME_TRIES:-5} quick=${RESUME_QUICK:-600} pause=${RESUME_PAUSE:-10}
case ${1:-} in
  -h | --help) usage ;;
  '' | -*) wrong "give the command to run, such as: onereward train --config quick --workdir runs/quick" ;;
esac
for number in "$tries" "$quick" "$pause"; do
  case $number in
    '' | *[!0-9]*) wrong "RESUME_TRIES, RESUME_QUICK and RESUME_PAUSE are whole numbers, not '$number'" ;;
  esac
done

child='' stopping='' signalled='' pending=''
tell() {
  stopping=$1 signalled=yes
  if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null; else pending=$1; fi
}
trap 'tell TERM' TERM HUP
trap 'tell INT' INT

# Waits for the command and leaves its exit code in `code`; a signal to this script only interrupts the wait.
await() {
  [ -z "$pending" ] || kill -s "$pending" "$child" 2>/dev/null
  while signalled=''; do
    wait "$child" 2>/dev/null  # bash would print "Killed", we print more
    code=$?
    [ -n "$signalled" ] || break
  done
  child=''
}

# The command gets its own process group: Ctrl-C reaches it only through us. A second one would stop it before it saves.
set -m
failures=0
while true; do
  began=$SECONDS
  "$@" &
  child=$!
  await
  seconds=$((SECONDS - began))
  case $stopping$code in
    [A-Z]* | 0 | 2 | 3 | 126 | 127) exit "$code" ;;
  esac
  if [ "$seconds" -lt "$quick" ]; then failures=$((failures + 1)); else failures=0; fi
  ended="resume.sh: $1 ended with exit code $code after $seconds s"
  if [ "$failures" -ge "$tries" ]; then
    echo "$ended, the last of $failures quick failures in a row: see what it said, then start again" >&2
    exit "$code"
  fi
  echo "$ended: starting it again in $pause s" >&2
  sleep "$pause" &
  child=$!
  await
  [ -z "$stopping" ] || exit "$code"
done
