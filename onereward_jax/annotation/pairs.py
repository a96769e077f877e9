"""Votes become preference data: whose count, what pairs they give, and what is held out."""

import dataclasses
import hashlib
import itertools
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onereward_jax.annotation.agreement import measure
from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.questions import BEST_WORST, JOBS
from onereward_jax.atomic_files import atomic_directory
from onereward_jax.data.bad_records import Skipped
from onereward_jax.data.preferences.ballots import implied_pairs
from onereward_jax.data.preferences.dataset import BAD_SHARE, Stored, write_records
from onereward_jax.data.preferences.record import (
    ORIGINAL,
    OTHER_VOTES,
    SOURCE,
    BadRecord,
    Record,
    Vote,
    image_sizes,
    pairs_of_votes,
)
from onereward_jax.errors import UserError
from onereward_jax.tasks import dimensions_of

PAIRS = ("best_worst", "all")
VOTES_BY = ("majority", "all")
MIN_ITEMS = 10  # repeats or gold items, below which nobody is left out for them


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is made of votes.

    Attributes:
      pairs: "best_worst": the best over the worst; "all": the best over every other, and every other over the worst.
      votes_by: "majority": a record's annotators decide together who wins a pair; "all": every annotator's votes are a
        record of their own, with those of the others in its notes, so that pairs on which they differ stay, both ways.
      leave_out: annotators whose votes don't count.
      min_gold, min_self: the least share of right gold answers, and of repeats answered as before; 0 asks for none. An
        annotator who had fewer than `MIN_ITEMS` of these counts.
    """

    pairs: str = "best_worst"
    votes_by: str = "majority"
    leave_out: frozenset[str] = frozenset()
    min_gold: float = 0.0
    min_self: float = 0.0


def counted(answers: Sequence[Answer], rules: Rules, right: Sequence[Answer] = ()) -> list[Answer]:
    """Return the plain answers of annotators who count; those who don't are named on stderr.

    How attentive annotators are is judged in each job by that job's repeats and gold items.

    Raises:
      UserError: an annotator to leave out is none, nobody was given gold items of which `right` knows the answers, or
        nobody is left.
    """
    names = {answer.annotator: None for answer in answers}
    if unknown := sorted(rules.leave_out - names.keys()):
        raise UserError(f"nobody called {unknown[0]!r} has voted: leave out one of {', '.join(sorted(names))}")
    known = {answer.record for answer in right}
    if rules.min_gold and not any(answer.kind == "gold" and answer.record in known for answer in answers):
        raise UserError("nobody was given gold items with known answers: leave --min_gold out")
    left = []
    for job in JOBS:
        of_job = [answer for answer in answers if answer.job == job]
        out = rules.leave_out | _careless(of_job, rules, right)
        left += [answer for answer in of_job if answer.kind == "plain" and answer.annotator not in out]
    if not left:
        raise UserError("no votes are left: leave fewer annotators out")
    return left


def _careless(answers: Sequence[Answer], rules: Rules, right: Sequence[Answer]) -> set[str]:
    """Return who has too few repeats or gold items right, of at least `MIN_ITEMS`, and name them on stderr."""
    out: set[str] = set()
    if not answers or not (rules.min_gold or rules.min_self):
        return out
    known = {answer.record for answer in right}
    items = {"gold": Counter[str](), "repeat": Counter[str]()}
    for kind, annotator, record in {(answer.kind, answer.annotator, answer.record) for answer in answers}:
        if kind == "repeat" or (kind == "gold" and record in known):
            items[kind][annotator] += 1
    for name, person in measure(answers, right, draws=0)["annotators"].items():
        for kind, key, least, words in (
            ("gold", "gold_right", rules.min_gold, "gold items right"),
            ("repeat", "self_agreement", rules.min_self, "repeats as before"),
        ):
            if name in out | rules.leave_out or person[key] is None or person[key] >= least:
                continue
            if items[kind][name] < MIN_ITEMS:
                few = f"which are {items[kind][name]}, and {MIN_ITEMS} are needed to leave anybody out"
                print(f"kept: {name}, with {person[key]:.2f} of {words}, {few}", file=sys.stderr)
                continue
            print(f"left out: {name}, with {person[key]:.2f} of {words}", file=sys.stderr)
            out.add(name)
    return out


def votes_of(answers: Iterable[Answer], pairs: str, candidates: int) -> list[Vote]:
    """Return one annotator's votes, in a form of which pairs follow by `record.pairs_of_votes`.

    With pairs "all", a vote stands for several, of the best over every other and of every other over the worst.
    """
    votes = []
    for answer in answers:
        vote = Vote(answer.question, answer.annotator, answer.best, answer.worst)
        implied = implied_pairs(vote.best, vote.worst, candidates) if pairs == "all" else []
        votes += [dataclasses.replace(vote, best=best, worst=worst) for best, worst in implied] or [vote]
    return votes


def voted_records(record: Record, answers: Sequence[Answer], rules: Rules) -> list[Record]:
    """Return the records that votes make of a record of candidates: one, with `votes_by` "all" one an annotator.

    Of several votes of one annotator in one dimension the last counts. Records whose votes order nothing are left out.

    Raises:
      BadRecord: the votes are on other candidates, or on another source image.
    """
    source = _source_of(record)
    known = dimensions_of(record.task, record.prompt)
    last: dict[tuple[str, str], Answer] = {}
    for answer in answers:
        ends = [end for end in (answer.best, answer.worst) if end is not None]
        if any(end >= len(record.candidates) for end in ends) or answer.question not in known:
            raise BadRecord(f"record {record.id} is not the one that was voted on: give the data that was")
        if record.image is not None and answer.source and answer.source not in (source, record.notes.get(SOURCE)):
            raise BadRecord(f"image of record {record.id} is not the one that was voted on: give the data that was")
        last[answer.annotator, answer.question] = answer
    by_annotator: dict[str, list[Answer]] = defaultdict(list)
    for (annotator, _), answer in last.items():
        by_annotator[annotator].append(answer)
    groups = [list(itertools.chain(*by_annotator.values()))]
    if rules.votes_by == "all":
        groups = list(by_annotator.values())
    found = []
    for group in groups:
        votes = tuple(votes_of(group, rules.pairs, len(record.candidates)))
        if all(vote.best is None for vote in votes):
            continue
        # A record of `collect` names its source: its image may be one of several crops.
        notes = {SOURCE: source} | dict(record.notes) | {"pairs": rules.pairs} | _remarks(group)
        name = record.id
        if rules.votes_by == "all":
            name = f"{record.id}/{group[0].annotator}"
            others = itertools.chain(*(one for one in groups if one is not group))
            notes |= {
                ORIGINAL: record.id,
                OTHER_VOTES: list(map(dataclasses.asdict, votes_of(others, "best_worst", 0))),
            }
        found.append(dataclasses.replace(record, id=name, votes=votes, pairs=pairs_of_votes(votes), notes=notes))
    return found


def _source_of(record: Record) -> str:
    """Identify the source image; a record without one shares it with no other."""
    content = record.image if record.image is not None else f"record {record.id}".encode()
    return hashlib.sha256(content).hexdigest()


def _remarks(answers: Iterable[Answer]) -> dict[str, Any]:
    """Return what annotators wrote and clicked on, once an item, as notes."""
    items = {(answer.annotator, answer.at): answer for answer in answers}.values()
    reasons = [{"annotator": item.annotator, "reason": item.reason} for item in items if item.reason]
    points = [
        {"annotator": item.annotator, "candidate": candidate, "x": x, "y": y}
        for item in items
        for candidate, x, y in item.points
    ]
    return ({"reasons": reasons} if reasons else {}) | ({"points": points} if points else {})


def is_held_out(source: str, share: float) -> bool:
    """Say whether a source image is held out: a share of all images is, whatever else the data holds."""
    return int.from_bytes(hashlib.sha256(f"held out {source}".encode()).digest()[:8], "big") < share * 2**64


def write_preferences(
    directory: Path,
    records: Stored,
    answers: Sequence[Answer],
    rules: Rules,
    held_out_share: float = 0.1,
    form: str = "folder",
    bad_share: float = BAD_SHARE,
) -> dict[str, dict[str, int]]:
    """Write directory/train and, with a share held out, directory/test: all of it, or nothing.

    Args:
      answers: those that count, see `counted`.
      held_out_share: share of the source images whose records are in test.
      form: one of `dataset.FORMS`.
      bad_share: the share of the voted records that may be bad.

    Returns:
      {"train" or "test": {"records", "votes", "pairs"}}.

    Raises:
      UserError: the directory is not empty, or there are no votes on these records, or too many of these are bad, or
        train or test would be without a pair.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} exists already: give a new directory")
    by_record: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        if answer.job == BEST_WORST:
            by_record[answer.record].append(answer)
    if not by_record:
        raise UserError("there are no votes for the best and the worst, of which pairs are made: see `onereward rank`")
    counts: dict[str, Counter[str]] = {part: Counter() for part in ("train", "test")}
    at: dict[str, list[int]] = {part: [] for part in counts}
    pairs, sources = Counter[str](), set()
    for index, found in _checked(records, _places(records, by_record), by_record, rules, bad_share):
        source = str(found[0].notes[SOURCE])
        part = "test" if is_held_out(source, held_out_share) else "train"
        at[part].append(index)
        pairs[part] += sum(len(record.pairs) for record in found)
        sources.add(source)
    if not pairs.total():
        raise UserError("no votes give a pair: they see no difference, or are as many either way")
    parts = ("train", "test") if held_out_share else ("train",)
    for part in parts:
        if not pairs[part]:
            raise UserError(
                f"{part} would hold no pair, with {held_out_share:g} of {len(sources)} source images held out: give"
                " votes on more source images, or another --held_out_share; 0 writes train alone"
            )
    with atomic_directory(directory) as partial:
        for part in parts:
            write_records(partial / part, _counting(_voted(records, at[part], by_record, rules), counts[part]), form)
    return {part: dict(count) for part, count in counts.items() if count}


def _places(records: Stored, by_record: Mapping[str, Sequence[Answer]]) -> list[int]:
    """Find the records that were voted on.

    Raises:
      UserError: one is not there.
    """
    missing, at = set(by_record), []
    for index in range(len(records)):
        try:
            name = records.outline(index).id
        except UserError:
            continue  # nobody can have voted on it
        if name in missing:
            missing.remove(name)
            at.append(index)
    if missing:
        raise UserError(
            f"{records.directory} does not hold {len(missing)} of {len(by_record)} records that were voted on, such as"
            f" {min(missing)}: give the data that was"
        )
    return at


def _checked(
    records: Stored, at: Sequence[int], by_record: Mapping[str, Sequence[Answer]], rules: Rules, bad_share: float
) -> Iterator[tuple[int, list[Record]]]:
    """Yield every place whose record is good and gives records, see `voted_records`."""
    skipped = Skipped("records", str(records.directory), bad_share)
    for index in at:
        try:
            record = records[index]
            image_sizes(record, records.name(index))
            found = voted_records(record, by_record[record.id], rules)
        except UserError as error:
            skipped.add(str(error))
            continue
        if found:
            yield index, found
    skipped.end(len(at))


def _voted(
    records: Stored, at: Sequence[int], by_record: Mapping[str, Sequence[Answer]], rules: Rules
) -> Iterator[Record]:
    for index in at:
        record = records[index]
        yield from voted_records(record, by_record[record.id], rules)


def _counting(records: Iterable[Record], count: Counter[str]) -> Iterator[Record]:
    for record in records:
        count.update(records=1, votes=len(record.votes), pairs=len(record.pairs))
        yield record
