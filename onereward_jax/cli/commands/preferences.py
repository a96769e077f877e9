"""Makes preference data of votes: OUT/train and, held out by source image, OUT/test.

DATA is the directory of candidates that was voted on. Votes for the best and the worst become pairs; "no difference"
gives none; repeats and gold items are left out. With --table, Good–Same–Bad verdicts become a table of model_a, model_b
and winner, for `onereward rank`.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import local_path, number, path, text
from onereward_jax.cli.commands import bad_share_argument


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onereward_jax.annotation.pairs import PAIRS, VOTES_BY
    from onereward_jax.data.preferences.dataset import FORMS

    share = number(float, at_least=0, at_most=1)
    parser.add_argument("--data", type=path, metavar="DIR", required=True, help="candidates that were voted on")
    parser.add_argument(
        "--votes", type=path, metavar="PATH", help="votes, or exported answers (.jsonl); default: DATA/votes.sqlite"
    )
    parser.add_argument("--out", type=local_path, metavar="DIR", help="a new directory for the preference data")
    parser.add_argument("--table", type=local_path, metavar="FILE", help="a table of verdicts, .csv or .jsonl")
    parser.add_argument(
        "--pairs",
        choices=PAIRS,
        default="best_worst",
        help="best_worst: the best over the worst, as in the paper (default); all: the best over every other, and every"
        " other over the worst",
    )
    parser.add_argument(
        "--votes_by",
        choices=VOTES_BY,
        default="majority",
        help="majority: a record's annotators decide together (default); all: each annotator's votes are a record",
    )
    parser.add_argument(
        "--held_out_share",
        type=number(float, at_least=0, below=1),
        default=0.1,
        metavar="SHARE",
        help="share of source images in OUT/test (default: %(default)s)",
    )
    parser.add_argument("--form", choices=FORMS, default="folder", help="form of the data (default: folder)")
    parser.add_argument(
        "--leave_out", type=text, metavar="NAME", nargs="+", default=[], help="annotators whose votes don't count"
    )
    parser.add_argument(
        "--gold", type=path, metavar="FILE", help="right answers to gold items, as `onereward annotate` takes them"
    )
    parser.add_argument(
        "--min_gold", type=share, default=0.0, metavar="SHARE", help="leave out who has fewer gold items right"
    )
    parser.add_argument(
        "--min_self", type=share, default=0.0, metavar="SHARE", help="leave out who answers fewer repeats as before"
    )
    bad_share_argument(parser)


def run(args: argparse.Namespace) -> None:
    from onereward_jax import buckets
    from onereward_jax.annotation.gold import read_right_answers
    from onereward_jax.annotation.pairs import Rules, counted, write_preferences
    from onereward_jax.annotation.ratings import comparisons_of, write_table
    from onereward_jax.annotation.votes import read_answers
    from onereward_jax.atomic_files import check_writable
    from onereward_jax.data.preferences.dataset import open_candidates
    from onereward_jax.errors import UserError

    if not args.out and not args.table:
        raise UserError("nothing is asked for: give --out, --table, or both")
    if args.min_gold and not args.gold:
        raise UserError("--min_gold needs the right answers to gold items: give --gold")
    for output in filter(None, (args.out and Path(args.out).parent, args.table and Path(args.table).parent)):
        check_writable(output)
    rules = Rules(args.pairs, args.votes_by, frozenset(args.leave_out), args.min_gold, args.min_self)
    data = buckets.reading(args.data)
    answers = read_answers(Path(args.votes) if args.votes else data, args.bad_share)
    right = read_right_answers(Path(args.gold), answers) if args.gold else []
    answers = counted(answers, rules, right)
    if args.table:
        comparisons = comparisons_of(answers)
        if not comparisons:
            raise UserError("there are no Good-Same-Bad verdicts among the votes: leave --table out")
        write_table(Path(args.table), comparisons)
        print(f"{args.table}: {len(comparisons)} comparisons")
    if args.out:
        found = write_preferences(
            Path(args.out), open_candidates(data), answers, rules, args.held_out_share, args.form, args.bad_share
        )
        for part, count in found.items():
            print(f"{args.out}/{part}: {count['records']} records, {count['votes']} votes, {count['pairs']} pairs")
