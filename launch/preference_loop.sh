#!/usr/bin/env bash
# From scenes of the proving ground to a judge, with simulated annotators in the place of people: candidates, votes,
# agreement, pairs, training. Takes a directory, by default runs/preference_loop; the same command resumes.
#   bash launch/preference_loop.sh [--dry_run] [DIRECTORY]
# --dry_run prints every command instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
dry_run=''
case ${1:-} in
  -h | --help) usage ;;
  --dry_run)
    dry_run=yes
    shift
    ;;
esac
directory=${1:-runs/preference_loop}
environment
run onereward collect --source proving_ground --model miniature/base --count 25 --min_steps 4 --max_steps 8 \
  --max_sequence_length 16 --dtype float32 --out "$directory/candidates"
run onereward annotate --data "$directory/candidates" --simulated 3 --overlap 1
run onereward agreement --votes "$directory/candidates" --report "$directory/agreement"
run onereward preferences --data "$directory/candidates" --out "$directory/pairs"
run onereward train-judge --config miniature/judge --config.judge.start=miniature/judge \
  --config.judge.data="('$directory/pairs',)" --config.judge.held_out_share=0.2 --config.judge.evaluate_every=20 \
  --config.train.num_steps=40 --config.optimizer.warmup_steps=5 --workdir "$directory/judge"
