"""Makes the next judge from a policy and its judge: candidates, votes, pairs, training, and what the old one missed.

    onereward round --source DIR --policy RUN --base BASE --judge JUDGE --config judge_7b --workdir WORKDIR
    onereward round --source proving_ground ... --simulated 3    by the ground truth of scenes, without people

Without --simulated it stops when the candidates are there: let people annotate WORKDIR/candidates, then give the same
command again. It resumes whenever it was stopped. The next judge is WORKDIR/judge/export, the report is
WORKDIR/report/report.html. --config.name=value sets how the judge is trained.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import local_path, number, path
from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.cli.commands.collect import asked_of, how_arguments, how_of, source_arguments
from onereward_jax.config.schema import JudgeTraining

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, JudgeTraining, workdir=False)
    parser.add_argument(
        "--workdir", type=local_path, metavar="DIR", required=True, help="the round's directory: a new one, or resumed"
    )
    parser.add_argument("--policy", type=path, metavar="PATH", required=True, help="a run or its export, an adapter")
    parser.add_argument(
        "--base", type=path, metavar="PATH", required=True, help="the model that the policy was trained from"
    )
    parser.add_argument("--judge", type=path, metavar="PATH", required=True, help="the old judge")
    parser.add_argument(
        "--earlier",
        type=path,
        metavar="DIR",
        action="append",
        default=[],
        help="preference data that the old judge was trained on, mixed in; may be repeated",
    )
    parser.add_argument(
        "--weight",
        type=number(int, at_least=1, at_most=1000),
        default=1,
        help="how often each new pair is drawn beside an earlier one, default 1",
    )
    parser.add_argument(
        "--simulated",
        type=number(int, at_least=1, at_most=1000),
        default=0,
        metavar="N",
        help="simulated annotators instead of people, for scenes of the proving ground",
    )
    parser.add_argument(
        "--min_voted",
        type=number(float, above=0, at_most=1),
        default=1.0,
        metavar="SHARE",
        help="share of the records that people have to have judged, default 1",
    )
    parser.add_argument(
        "--overlap", type=number(float, at_least=0, at_most=1), default=0.15, help="of simulated ones, default 0.15"
    )
    parser.add_argument("--pairs", choices=("best_worst", "all"), default="best_worst", help="see `preferences`")
    parser.add_argument(
        "--held_out_share",
        type=number(float, above=0, below=1),
        default=0.2,
        metavar="SHARE",
        help="share of source images whose pairs are held out, default 0.2",
    )
    source_arguments(parser)
    how_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from onereward_jax.runs.round import Round, run_round

    of = Round(
        policy=args.policy,
        base=args.base,
        judge=args.judge,
        earlier=tuple(args.earlier),
        weight=args.weight,
        pairs=args.pairs,
        held_out_share=args.held_out_share,
        simulated=args.simulated,
        overlap=args.overlap,
        seed=args.seed,
        min_voted=args.min_voted,
    )
    use_compilation_cache()
    run_round(of, args.config, asked_of(args), how_of(args), Path(args.workdir))
