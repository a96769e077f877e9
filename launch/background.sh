#!/usr/bin/env bash
# One command in the background of this machine, which outlives the connection that started it.
#   bash launch/background.sh start COMMAND...   says what it does in run.log
#   bash launch/background.sh stop               SIGTERM, then waits: a training saves first
#   bash launch/background.sh idle               exit code 2 if a command is running
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh

# The number of a process is used again once it is gone, but not with the same clock ticks since the machine started.
identity() {
  echo "$1 $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20)"
}

running() {
  local pid
  [ -s run.pid ] && read -r pid _ <run.pid && [ -e "/proc/$pid" ] && [ "$(identity "$pid")" = "$(cat run.pid)" ]
}

case ${1:-} in
  start)
    shift
    [ $# -gt 0 ] || wrong "give the command to start"
    if running; then wrong "a command is running here already: stop it first"; fi
    nohup "$@" >>run.log 2>&1 </dev/null &
    identity $! >run.pid
    echo "started: $(quoted "$@")"
    ;;
  stop)
    running || wrong "no command is running here"
    kill -TERM "$(cut -d ' ' -f 1 run.pid)"
    while running; do sleep 1; done
    tail -n 3 run.log
    ;;
  idle) if running; then wrong "a command is running here already: stop it first"; fi ;;
  -h | --help) usage ;;
  *) wrong "give one of start, stop and idle" ;;
esac
