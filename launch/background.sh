#!/usr/bin/env bash
# Runs one command in the background, so that it outlives the connection that started it.
#   bash launch/background.sh start COMMAND...   appends output to run.log
#   bash launch/background.sh stop               sends SIGTERM and waits, while a training saves
#   bash launch/background.sh idle               exits with 2 if a command is running
#   bash launch/background.sh state COMMAND...   prints `running`, `ended CODE`, `lost` (it vanished without an exit code, as
#                                                by a restart of the machine) or `none`; `other` if another one is running
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/run.sh

# A process id is reused once its process is gone, but not with the same start time, in clock ticks since boot.
identity() {
  echo "$1 $(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20)"
}

running() {
  local pid
  [ -s run.pid ] && read -r pid _ <run.pid && [ -e "/proc/$pid" ] && [ "$(identity "$pid")" = "$(cat run.pid)" ]
}

# The process that waits for the command, to keep its exit code.
keep() {
  local code=0
  "$@" &
  identity $! >run.pid.new
  mv run.pid.new run.pid
  wait $! || code=$?
  echo "$code" >run.code
}

case ${1:-} in
  start)
    shift
    [ $# -gt 0 ] || wrong "give the command to start"
    if running; then wrong "a command is running here already: stop it first"; fi
    rm -f run.pid run.code
    quoted "$@" >run.command
    nohup bash launch/background.sh keep "$@" >>run.log 2>&1 </dev/null &
    until [ -e run.pid ]; do sleep 0.05; done
    echo "started: $(quoted "$@")"
    ;;
  keep) keep "${@:2}" ;;
  stop)
    running || wrong "no command is running here"
    kill -TERM "$(cut -d ' ' -f 1 run.pid)"
    while running; do sleep 1; done
    tail -n 3 run.log
    ;;
  idle) if running; then wrong "a command is running here already: stop it first"; fi ;;
  state)
    shift
    if [ "$(cat run.command 2>/dev/null)" != "$(quoted "$@")" ]; then
      if running; then echo other; else echo none; fi
    elif running; then
      echo running
    elif [ -e run.code ]; then
      echo "ended $(cat run.code)"
    elif [ -e run.pid ]; then
      sleep 1 # between the end of the command and the writing of its exit code
      if [ -e run.code ]; then echo "ended $(cat run.code)"; else echo lost; fi
    else
      echo none
    fi
    ;;
  -h | --help) usage ;;
  *) wrong "give one of start, stop, idle and state" ;;
esac
