"""A round of the preference loop: from a policy and its judge to the next judge.

directory/
  round.json     what the round is of; written first
  candidates/    of policy and base, by `candidates.collect`; and votes.sqlite
  pairs/         train and test, of the votes
  judge/         the working directory of the training that resumes from the old judge; its export is the next judge
  report/        report.json, written last, and pages

Every stage leaves what is whole, or resumes by itself: how far a round is can be seen from these alone, and the same
command goes on after any kill.
"""

import contextlib
import dataclasses
import gc
import json
import random
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from onereward_jax.annotation import simulated
from onereward_jax.annotation.assign import Desk
from onereward_jax.annotation.choosing import Rules as Desks
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.pairs import Rules, counted, write_preferences
from onereward_jax.annotation.questions import BEST_WORST
from onereward_jax.annotation.store import FILE, Store
from onereward_jax.annotation.votes import read_answers
from onereward_jax.atomic_files import lock, write_json
from onereward_jax.buckets import reading
from onereward_jax.candidates.asked import Asked
from onereward_jax.candidates.collect import Collecting, collect
from onereward_jax.config.schema import JudgeTraining
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.data.preferences.dataset import open_candidates, open_records
from onereward_jax.errors import UserError, shown
from onereward_jax.evaluation.accuracy import accuracy_difference, human_accuracy, judge_accuracy
from onereward_jax.evaluation.judge_predictions import ballots_of, judge_pairs, records_of
from onereward_jax.evaluation.missed import answers_of, count_kinds, policy_preferred
from onereward_jax.evaluation.report.round_report import write_round_report
from onereward_jax.fill.policies import Policy
from onereward_jax.given_files import read_json
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.pairs import Pairs, check_record, read_pairs
from onereward_jax.parallel import hosts
from onereward_jax.runs.judge import train_judge
from onereward_jax.training.trainer import check_devices

ROUND_FILE, REPORT_FILE = "round.json", "report.json"


@dataclasses.dataclass(frozen=True)
class Round:
    """What a round is of.

    Attributes:
      policy, base: fill models, as `Policy.at` takes them; the base is also the whole model of a policy that is a part.
      judge: the old judge, a directory or a repository.
      earlier: preference data that the old judge was trained on; of those with a `test` beside their `train`, both
        judges are asked about it.
      weight: how often each of the round's pairs is drawn beside an earlier one.
      pairs: what is made of a vote, see `annotation.pairs.Rules`.
      held_out_share: share of the source images whose pairs are held out.
      simulated: annotators of scenes of the proving ground; 0: people vote.
      overlap, overlap_votes: of simulated annotators, see `annotation.choosing.Rules`.
      seed: of simulated annotators.
      min_voted: share of the records that people have to have judged; it may change as the round goes on.
    """

    policy: str
    base: str
    judge: str
    earlier: tuple[str, ...] = ()
    weight: int = 1
    pairs: str = "best_worst"
    held_out_share: float = 0.2
    simulated: int = 0
    overlap: float = 0.15
    overlap_votes: int = 3
    seed: int = 0
    min_voted: float = 1.0

    def models(self) -> dict[str, Policy]:
        """The models that make candidates, by name."""
        named = {self.policy: Policy.at(self.policy, self.base, "--base")}
        return named | {self.base: Policy.at(self.base)}

    def training(self, config: JudgeTraining, directory: Path) -> JudgeTraining:
        """The configuration of the next judge's training."""
        data = (str(directory / "pairs"),) * self.weight + self.earlier
        return config.replace({"judge.start": self.judge, "judge.data": data})


def run_round(of: Round, config: JudgeTraining, asked: Asked, collecting: Collecting, directory: Path) -> None:
    """Make the next judge in directory/judge/export, resuming an earlier call with the same arguments.

    Of several processes, all call this alike, and share the directory.

    Args:
      config: of the judge's training; its `judge.start` and `judge.data` are those of the round.
      asked: requests to make candidates for.
      collecting: how.

    Raises:
      FileNotFoundError, UserError: something is missing or does not fit; the directory is of another round; or the
        candidates wait for people's votes.
    """
    for earlier in of.earlier:  # before hours of work
        open_records(reading(earlier))
    training, models = of.training(config, directory), of.models()
    check_devices(training)
    hosts.on_primary(lambda: _claim(of, directory))
    hosts.check_shared(directory / ".processes")
    candidates, pairs = directory / "candidates", directory / "pairs"

    hosts.on_primary(lambda: lock(candidates, "--workdir"))
    _say("candidates")
    records = collect(asked, models, collecting, candidates)
    gc.collect()  # the models

    if hosts.on_primary(lambda: not pairs.exists()):
        _say(f"votes on {records} records")
        hosts.on_primary(lambda: _vote(of, candidates))
        _say("pairs")
        hosts.on_primary(lambda: _make_pairs(of, candidates, pairs))
        hosts.share(pairs)

    report = directory / "report"
    if hosts.on_primary(lambda: (report / REPORT_FILE).is_file()):
        _say(f"done before: the next judge is {directory / 'judge/export'}, the report {report / 'report.html'}")
        return
    _say("judge")
    train_judge(training, claim_workdir(directory / "judge", training))
    gc.collect()

    _say("report")
    _report(of, training, directory)
    _say(f"done: the next judge is {directory / 'judge/export'}, the report {report / 'report.html'}")


def _say(text: str) -> None:
    if hosts.is_primary():
        print(f"round: {text}", file=sys.stderr, flush=True)


def _claim(of: Round, directory: Path) -> None:
    """Write round.json, or check that the directory is of the same round."""
    lock(directory)
    file, new = directory / ROUND_FILE, json.loads(json.dumps(dataclasses.asdict(of)))
    if file.exists():
        earlier = read_json(file, f"delete {directory}")
        if differing := [name for name in new if name != "min_voted" and earlier.get(name) != new[name]]:
            name = differing[0]
            raise UserError(
                f"{directory} holds a round of another {name} ({shown(earlier.get(name), 60)} there,"
                f" {shown(new[name], 60)} now): choose another --workdir, or the arguments that it began with"
            )
        return
    if foreign := sorted(path.name for path in directory.iterdir() if not path.name.startswith(".")):
        raise UserError(f"{directory} holds {shown(foreign[0])} and no round: choose a new --workdir")
    write_json(file, new)


# --------------------------------------------------------------------------------------------------------------- votes


def _vote(of: Round, candidates: Path) -> None:
    """Let simulated annotators vote, or check that people have.

    Raises:
      UserError: there are too many records that nobody has voted on.
    """
    if of.simulated:
        items = Items(open_candidates(candidates), BEST_WORST)
        rules = Desks(overlap=of.overlap, overlap_votes=of.overlap_votes)
        desk = Desk(Store(candidates / FILE), items, rules, rng=random.Random(of.seed))
        with contextlib.closing(desk.store), contextlib.closing(desk):
            simulated.vote(desk, of.simulated, of.seed)
        return
    all_records, voted = len(open_candidates(candidates)), _voted(candidates)
    if voted < max(1, of.min_voted * all_records):
        raise UserError(
            f"{voted} of {all_records} records have a vote: annotate the others with `onereward annotate --data"
            f" {candidates}`, then run this again"
        )


def _voted(candidates: Path) -> int:
    """Count the records that somebody has judged."""
    if not (candidates / FILE).is_file():
        return 0
    with contextlib.closing(Store(candidates / FILE, create=False)) as store:
        return len({answer.record for answer in store.iter_answers(BEST_WORST)})


def _make_pairs(of: Round, candidates: Path, pairs: Path) -> None:
    rules = Rules(pairs=of.pairs)
    answers = counted(read_answers(candidates), rules)
    found = write_preferences(pairs, open_candidates(candidates), answers, rules, of.held_out_share)
    for part, count in found.items():
        print(f"{part}: {count['records']} records, {count['votes']} votes, {count['pairs']} pairs", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- report


def _report(of: Round, config: JudgeTraining, directory: Path) -> None:
    """Ask both judges about the held-out pairs of the round and of the earlier data; write directory/report."""
    sets = {"round": [directory / "pairs" / "test"]}
    earlier = [path for path in (reading(name) / "test" for name in of.earlier) if path.is_dir()]
    if earlier:
        sets["earlier"] = earlier
    export = directory / "judge" / "export"
    new = (of.judge, str(export)) if config.lora.rank else (str(export), None)
    pairs: dict[str, Pairs] = {}
    predictions: dict[str, dict[str, Any]] = {name: {} for name in sets}
    for key, (path, adapter) in {"old": (of.judge, None), "model": new}.items():
        judge = Judge.from_pretrained(path, config.judge.dtype, lora=adapter, mesh=check_devices(config))
        check = partial(check_record, judge, config.question_length)
        for name, directories in sets.items():
            if name not in pairs:
                read = partial(read_pairs, check=check, bad_share=config.judge.bad_share, workdir=directory)
                pairs[name] = read(*directories)
            predictions[name][key] = judge_pairs(
                judge,
                pairs[name],
                batch_size=config.train.batch_size,
                question_length=config.question_length,
                mesh=check_devices(config),
                image_step=config.judge.image_step,
            )
        del judge, check
        gc.collect()
    if not hosts.is_primary():
        return
    answers = {name: answers_of(pairs[name], of_set["old"], of_set["model"]) for name, of_set in predictions.items()}
    found = {name: _measured(pairs[name], predictions[name]) for name in sets}
    for name, measured in found.items():
        measured["kinds"] = count_kinds(answers[name])
    found["round"]["policy_preferred"] = policy_preferred(pairs["round"], answers["round"], of.policy, of.base)
    write_round_report(directory / "report", found, pairs["round"], answers["round"], _facts(of))
    write_json(directory / "report" / REPORT_FILE, found)


def _measured(pairs: Pairs, predictions: Mapping[str, Any]) -> dict[str, Any]:
    """What `write_judge_report` shows: both judges, their difference, and annotators where several voted."""
    found: dict[str, Any] = {name: judge_accuracy(of_judge) for name, of_judge in predictions.items()}
    difference = accuracy_difference(predictions["model"], predictions["old"], records_of(pairs))
    found["differences"] = {"old": difference}
    if humans := human_accuracy(ballots_of(pairs)):
        found["annotators"] = humans
    return found


def _facts(of: Round) -> list[tuple[str, str]]:
    by = f"{of.simulated} simulated annotators" if of.simulated else "people"
    facts = [("policy", of.policy), ("base", of.base), ("old judge", of.judge), ("annotated by", by)]
    return [*facts, ("earlier data", ", ".join(of.earlier) or "none")]
