"""Measures how far annotators agree, with each other, with themselves on repeats, and on gold items.

Prints Krippendorff's alpha and the agreement of two annotators for every question, with 95 % intervals over source
images, and a line for every annotator. docs/how-to/votes.md says what is compared.
"""

import argparse
from pathlib import Path

from onereward_jax.cli.arguments import local_path, number, path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--votes",
        type=path,
        metavar="PATH",
        required=True,
        help="database of votes, the directory that holds votes.sqlite, or exported answers (.jsonl)",
    )
    parser.add_argument(
        "--gold", type=path, metavar="FILE", help="right answers to gold items, as `onereward annotate` takes them"
    )
    parser.add_argument(
        "--draws",
        type=number(int, at_least=100, at_most=100_000),
        default=1000,
        metavar="N",
        help="resamples of the source images (default: %(default)s)",
    )
    parser.add_argument("--json", type=local_path, metavar="FILE", help="a JSON file for all figures")
    parser.add_argument("--report", type=local_path, metavar="DIR", help="a directory for report.html and its figure")


def run(args: argparse.Namespace) -> None:
    from onereward_jax.annotation.agreement import measure
    from onereward_jax.annotation.gold import read_right_answers
    from onereward_jax.annotation.votes import read_answers
    from onereward_jax.atomic_files import check_writable, write_json
    from onereward_jax.evaluation.report.agreement_report import table, write_agreement_report

    for output in filter(None, (args.report, args.json and Path(args.json).parent)):
        check_writable(Path(output))
    answers = read_answers(Path(args.votes))
    right = read_right_answers(Path(args.gold), answers) if args.gold else []
    found = measure(answers, right, args.draws)
    print(table(found))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.json), found)
    if args.report:
        write_agreement_report(Path(args.report), found, [("votes", args.votes)])
