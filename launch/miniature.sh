#!/usr/bin/env bash
# Trains the packaged models in miniature/ from scratch: hours on two cores. Every stage resumes where it stopped.
# --dry_run prints every command instead.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
dry_run=''
case ${1:-} in
  '') ;;
  --dry_run) dry_run=yes ;;
  *) wrong "there is no option $1: --dry_run is the only one" ;;
esac
environment
runs=runs/miniature
run onereward train-vae --config miniature/vae --workdir $runs/vae
run onereward train-base --config miniature/base --workdir $runs/base
run onereward package --base $runs/base/export --out miniature
run onereward sanity-checks --config quick --workdir $runs/sanity_checks
run onereward make-preferences --config miniature/judge --workdir $runs/preferences
run onereward train-judge --config miniature/judge --workdir $runs/judge
run onereward package --judge $runs/judge/export --out miniature

# Over-optimise policies against a judge, then train a judge that has seen their images.
over_optimise() {
    run onereward train --config quick --config.train.num_steps=120 --config.rl.threshold=0.9 \
        --config.rl.matched_reference=false --config.rl.flow_matching_weight=0 --config.rl.judge_noise=0 \
        --config.optimizer.decay_steps=0 --config.evaluation.every=0 "$@"
}
over_optimise --config.rl.first_index=2 --config.rl.last_index=5 --config.rl.judge_shift=0 --config.optimizer.learning_rate=2e-5 \
    --workdir $runs/policy_early
over_optimise --config.rl.first_index=5 --config.rl.last_index=7 --config.rl.judge_shift=0 --config.optimizer.learning_rate=3e-5 \
    --workdir $runs/policy_late
run onereward make-preferences --config miniature/second_judge --workdir $runs/second_preferences
run onereward train-judge --config miniature/second_judge --workdir $runs/second_judge

# More images by the base model, and synthetic pairs that are new at every step.
run onereward make-preferences --config miniature/third_judge --workdir $runs/third_preferences
run onereward train-judge --config miniature/third_judge --workdir $runs/third_judge
run onereward package --judge $runs/third_judge/export --out miniature

# Repeat with three other policies.
over_optimise --config.rl.first_index=1 --config.rl.last_index=4 --config.optimizer.learning_rate=1e-5 \
    --config.train.num_steps=80 --config.rl.threshold=0.6 --config.rl.matched_reference=true \
    --config.rl.flow_matching_weight=0.5 --workdir $runs/policy_gentle
over_optimise --config.rl.first_index=1 --config.rl.last_index=4 --config.optimizer.learning_rate=2e-5 \
    --config.rl.matched_reference=true --workdir $runs/policy_grainy
over_optimise --config.rl.first_index=4 --config.rl.last_index=7 --config.optimizer.learning_rate=2e-5 \
    --workdir $runs/policy_sharp
run onereward make-preferences --config miniature/fourth_judge --workdir $runs/fourth_preferences
run onereward train-judge --config miniature/fourth_judge --workdir $runs/fourth_judge
run onereward package --judge $runs/fourth_judge/export --out miniature

# Repeat with policies that hack the fourth judge: one with a higher learning rate than the quick run, one without flow
# matching on the data. All dimensions are drawn equally often, and the rarest pairs, the aesthetics of extensions, get
# additional scenes.
run onereward train --config quick --config.optimizer.learning_rate=1e-4 --config.evaluation.every=0 \
    --workdir $runs/policy_bold
run onereward train --config quick --config.train.num_steps=120 --config.rl.flow_matching_weight=0 \
    --config.rl.judge_noise=0 --config.evaluation.every=0 --workdir $runs/policy_free
run onereward make-preferences --config miniature/fifth_judge --workdir $runs/fifth_preferences
run onereward make-preferences --config miniature/fifth_judge --workdir $runs/fifth_extensions \
    --config.preferences.first_scene=10240 --config.preferences.scenes_per_task=2048 --config.data.task_weights.image_fill=0 \
    --config.data.task_weights.object_removal=0 --config.data.task_weights.text_rendering=0
run onereward train-judge --config miniature/fifth_judge --workdir $runs/fifth_judge
run onereward package --judge $runs/fifth_judge/export --out miniature
