"""Measures a judge's accuracy on annotated pairs, per task and dimension; JSON with --out, a page with --report.

DATA is preference data in either form (docs/reference/preference_data.md), such as a directory of
`onereward make-preferences`. Images may have any size. The judge sees every pair in both orders; invalid records are
named and left out. Another judge (--untuned), or one judge per task (--one_a_task), is asked about the same pairs, and
the differences get paired intervals. Where several annotators voted on a pair, how often one of them agrees with the
majority of the others stands beside the judges. A judge is spread over all devices, of one host or of several that all
run this command.
"""

import argparse
import functools
from pathlib import Path

from onereward_jax.cli.arguments import like, local_path, path, text
from onereward_jax.cli.commands import bad_share_argument
from onereward_jax.config.schema import Evaluation, JudgeModel

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=path, metavar="PATH", required=True, help="judge, a directory or hub repository"
    )
    parser.add_argument(
        "--lora", type=path, metavar="PATH", action="append", help="adapter of that judge in PEFT's layout"
    )
    parser.add_argument(
        "--data", type=path, metavar="DIR", nargs="+", required=True, help="preferences, in either form"
    )
    parser.add_argument("--untuned", type=path, metavar="PATH", help="another judge to measure on the same pairs")
    parser.add_argument(
        "--one_a_task",
        type=text,
        metavar="TASK=PATH",
        nargs="+",
        help="judges of one task each to measure on the same pairs",
    )
    parser.add_argument(
        "--source",
        choices=("planted", "base"),
        default="",
        help="only pairs with synthetic defects (planted), or by the base model (base)",
    )
    parser.add_argument(
        "--batch_size",
        type=like(Evaluation, "batch_size"),
        default=Evaluation().batch_size,
        metavar="N",
        help="pairs per batch, rounded up to a multiple of the devices (default: %(default)s)",
    )
    parser.add_argument(
        "--image_step",
        type=like(JudgeModel, "image_step"),
        default=0,
        metavar="N",
        help="round image sides to multiples of N pixels",
    )
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")
    bad_share_argument(parser)
    parser.add_argument(
        "--out", type=local_path, metavar="FILE", help="a JSON file for all figures, including calibration"
    )
    parser.add_argument("--report", type=local_path, metavar="DIR", help="a directory for report.html and its figures")


def run(args: argparse.Namespace) -> None:
    from onereward_jax import buckets
    from onereward_jax.atomic_files import check_writable, write_json
    from onereward_jax.data.preferences.dataset import open_records
    from onereward_jax.errors import UserError
    from onereward_jax.evaluation.accuracy import accuracy_difference, human_accuracy, judge_accuracy
    from onereward_jax.evaluation.judge_predictions import ballots_of, judge_pairs, judge_pairs_by_task, records_of
    from onereward_jax.evaluation.report.judge_report import write_judge_report
    from onereward_jax.judge.judge import Judge
    from onereward_jax.judge.pairs import check_record, read_pairs
    from onereward_jax.parallel import hosts
    from onereward_jax.parallel.mesh import mesh_of_all

    directories = [buckets.reading(directory) for directory in args.data]
    for directory in directories:  # before a model is loaded
        open_records(directory)
    specialists = _specialists(args.one_a_task or [])
    for output in filter(None, (args.report, args.out and Path(args.out).parent)):
        check_writable(Path(output))
    mesh = mesh_of_all()
    judge = Judge.from_pretrained(args.model, args.dtype, lora=args.lora, mesh=mesh)
    check = functools.partial(check_record, judge, None)
    pairs = read_pairs(*directories, source=args.source, check=check, bad_share=args.bad_share)
    if specialists and (missing := sorted({pair.task for pair in pairs} - specialists.keys())):
        raise UserError(f"--one_a_task names no judge of {', '.join(missing)}, of which there are pairs: name one, too")
    how = {"batch_size": args.batch_size, "image_step": args.image_step, "mesh": mesh}
    predictions: dict = {}
    found: dict = {}
    humans = human_accuracy(ballots_of(pairs))

    def measure(name: str, shown: str, answers: list) -> None:
        predictions[name], found[name] = answers, judge_accuracy(answers)
        if hosts.is_primary():
            print(_table(shown, found[name], humans))

    measure("model", args.model, judge_pairs(judge, pairs, **how))
    del judge, check  # before another one is loaded
    if args.untuned:
        untuned = Judge.from_pretrained(args.untuned, args.dtype, mesh=mesh)
        measure("untuned", args.untuned, judge_pairs(untuned, pairs, **how))
        del untuned
    if specialists:
        judge_of = lambda task: Judge.from_pretrained(specialists[task], args.dtype, mesh=mesh)
        measure("one_a_task", "one judge per task", judge_pairs_by_task(judge_of, pairs, **how))
    records = records_of(pairs)
    others = {name: answers for name, answers in predictions.items() if name != "model"}
    found["differences"] = {name: accuracy_difference(predictions["model"], x, records) for name, x in others.items()}
    if humans:
        found["annotators"] = humans
    if not hosts.is_primary():
        return
    for name, difference in found["differences"].items():
        low, high = difference["overall"]["ci95"]
        print(f"{args.model} - {name}: {difference['overall']['difference']:+.3f}, 95 % {low:+.3f} to {high:+.3f}")
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(args.out), found)
    if args.report:
        models = [("model", args.model), ("untuned", args.untuned), *specialists.items()]
        facts = [(name, path) for name, path in models if path]
        write_judge_report(Path(args.report), found, [*facts, ("data", ", ".join(args.data))])


def _specialists(given: list[str]) -> dict[str, str]:
    """Parse ["image_fill=DIR", ...] into {task: directory}."""
    from onereward_jax.errors import UserError
    from onereward_jax.tasks import TASKS

    found: dict[str, str] = {}
    for argument in given:
        task, _, directory = argument.partition("=")
        if task not in TASKS or not directory:
            raise UserError(f"--one_a_task {argument!r} is not TASK=PATH with a task of {', '.join(TASKS)}")
        if task in found:
            raise UserError(f"--one_a_task names two judges of {task}: name one")
        found[task] = directory
    return found


def _table(title: str, found: dict, humans: dict | None) -> str:
    of_people = "  one annotator  95 %          asked" if humans else ""
    lines = [title, f"{'task':<16}{'dimension':<18}accuracy  95 %          both orders  pairs{of_people}"]
    for task, cells in found["cells"].items():
        for dimension, cell in cells.items():
            human = humans["cells"].get(task, {}).get(dimension) if humans else None
            lines.append(_line(task, dimension, cell, human))
    overall = found["overall"]
    lines.append(_line("all", "", overall, humans and humans["overall"]))
    lines.append(f"position bias {overall['position_bias']:+.3f}, calibration error {overall['calibration_error']:.3f}")
    return "\n".join(lines)


def _line(task: str, dimension: str, cell: dict, human: dict | None) -> str:
    """Show a cell's accuracy and, where several annotators voted, that of one of them against the others."""
    low, high = cell["ci95"]
    line = (
        f"{task:<16}{dimension:<18}{cell['accuracy']:.2f}      {low:.2f} to {high:.2f}  "
        f"{cell['both_orders']:.2f}         {cell['n']}"
    )
    if not human:
        return line
    low, high = human["ci95"]
    return f"{line:<78}{human['accuracy']:.2f}           {low:.2f} to {high:.2f}  {human['n']}"
