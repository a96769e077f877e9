"""Compares two policies on requests, or a finished run with its base: WORKDIR or OUT/evaluation.json, report.html.

With --policy, any policies on any data: judges see both images in both orders (Good-Same-Bad, with intervals clustered
by request); without a judge, fidelity and seam outside the mask, what is left of removed objects and, where asked,
text alignment by CLIP and OCR accuracy are measured. With --workdir, a run of the proving ground, by its ground truth.
Images and answers are kept as they are made: the same command goes on where it stopped. On many hosts, all run the
same command and share the output directory.
"""

import argparse
from pathlib import Path

from onereward_jax import buckets
from onereward_jax.cli.arguments import number, path
from onereward_jax.cli.commands import config_arguments, use_compilation_cache
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir, local_workdir
from onereward_jax.errors import UserError

IN_SEVERAL_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    config_arguments(parser, RewardFeedback, default="flux_fill", workdir=False)
    parser.add_argument("--workdir", type=path, metavar="DIR", help="working directory of a finished `onereward train`")
    parser.add_argument(
        "--policy",
        type=path,
        metavar="PATH",
        help="a run's working directory or export, a model in diffusers layout, an adapter, a hub repository",
    )
    parser.add_argument(
        "--baseline", type=path, metavar="PATH", help="what it is compared with (default: the run's base model)"
    )
    parser.add_argument("--data", type=path, metavar="PATH", help="requests: docs/reference/requests.md")
    parser.add_argument(
        "--judge",
        type=path,
        metavar="PATH",
        action="append",
        default=[],
        help="a judge, or an adapter of one; may be repeated",
    )
    parser.add_argument("--out", type=path, metavar="DIR", help="output directory (default: evaluations/POLICY)")
    parser.add_argument(
        "--per_task",
        type=number(int, at_least=1, at_most=10**6),
        metavar="N",
        help="the first N requests of each task (default: all)",
    )
    parser.add_argument("--clip", type=path, metavar="PATH", help="a CLIP model, which measures text alignment")
    parser.add_argument("--lpips", type=path, metavar="FILE", help="the weights of LPIPS: docs/how-to/evaluate.md")
    parser.add_argument("--ocr", action="store_true", help="read the words of text rendering: needs the extra `ocr`")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="default: bfloat16")


def run(args: argparse.Namespace) -> None:
    if (args.policy is None) == (args.workdir is None):
        raise UserError("say what to evaluate: a finished run with --workdir, or any policy with --policy and --data")
    if args.policy is None:
        _evaluate_run(args)
    else:
        _evaluate_policy(args)


def _evaluate_run(args: argparse.Namespace) -> None:
    # Before the claim, which would make the directory.
    if not (buckets.path(args.workdir) / "training.json").exists():
        raise UserError(f"{args.workdir} holds no trained policy: run `onereward train` with this --workdir first")

    from onereward_jax.evaluation.evaluate import evaluate

    evaluate(args.config, claim_workdir(args.workdir, args.config, args.config.only_measuring))


def _evaluate_policy(args: argparse.Namespace) -> None:
    if args.data is None:
        raise UserError("--policy needs requests to answer: give them with --data")

    from onereward_jax.atomic_files import lock
    from onereward_jax.evaluation.evaluate import evaluate_policies, requests_at
    from onereward_jax.evaluation.meters.all_meters import chosen_meters
    from onereward_jax.evaluation.report.run_report import summarize
    from onereward_jax.fill.policies import policies_at
    from onereward_jax.parallel import hosts

    policy, baseline = policies_at(args.policy, args.baseline)
    out = local_workdir(args.out or Path("evaluations") / (Path(args.policy).name or "policy"))
    meters = chosen_meters(args.clip, args.lpips, args.ocr)
    source = requests_at(args.config, buckets.reading(args.data), out)
    hosts.on_primary(lambda: lock(out))
    buckets.pull(out)
    if not buckets.is_bucket(args.out or ""):
        hosts.check_shared(out / ".processes")
    use_compilation_cache()
    evaluation = evaluate_policies(
        policy, baseline, source, args.config, out, args.judge, meters, args.per_task, args.dtype
    )
    if hosts.is_primary():
        print(f"{out / 'report.html'}: {summarize(evaluation, {})}")
