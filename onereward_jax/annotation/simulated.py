"""Simulated annotators: they answer for scenes of the proving ground, by ground truth with errors.

Their votes go the way of people's: through the desk, into the same database. They decide as
`proving_ground.annotator` does, so what is learnt from them can be compared with the truth.
"""

import functools
import hashlib
import uuid
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from onereward_jax.annotation.assign import Ballot, Desk
from onereward_jax.annotation.ballot import Choice, as_shown
from onereward_jax.annotation.items import Item
from onereward_jax.annotation.questions import BEST_WORST, GOOD_SAME_BAD, Question
from onereward_jax.annotation.store import Assignment, Person
from onereward_jax.errors import UserError
from onereward_jax.images.reading import read_image
from onereward_jax.proving_ground import ProvingGround, annotator, score

Scores = Sequence[Mapping[str, float]]  # of each candidate, {dimension: score in [0, 1]}

# The dimension that a mark of the paper's looks at; None is the mean over all.
_LOOKS_AT = {
    "usability": None,
    "text_rendering": "structure",
    "texture_consistency": "consistency",
    "style_consistency": "consistency",
}


def vote(
    desk: Desk,
    annotators: int,
    seed: int = 0,
    noise: float | Mapping[str, float] = annotator.NOISE,
    margin: float = annotator.MARGIN,
) -> int:
    """Answer all that is to be had, each annotator one item in turn, and return the number of votes.

    Args:
      desk: its records are scenes of the proving ground, as `onereward collect --source proving_ground` writes them.
      annotators: their names are "simulated-1", "simulated-2", ...
      seed: of the annotators' errors, which are the same in whatever order and however many runs records are judged.
      noise, margin: see `proving_ground.annotator.annotate`.

    Raises:
      UserError: a record is no scene of the proving ground.
    """
    for place in range(len(desk.items)):
        _ground(desk.items[place], 64)  # before the first vote
    people = [desk.store.add_person(f"simulated-{number + 1}") for number in range(annotators)]
    before, wanted = desk.progress()
    votes, turn = 0, list(people)
    with tqdm(total=wanted, initial=before, desc="simulated votes", mininterval=5) as bar:
        while turn:
            for person in list(turn):
                given, _ = desk.draw(person)
                if not given:
                    turn.remove(person)
                    continue
                desk.vote(person, _ballot(desk, given[0], generator_of(seed, person, given[0]), noise, margin))
                votes += 1
                done, bar.total = desk.progress()
                bar.update(done - bar.n)
    return votes


def generator_of(seed: int, person: Person, given: Assignment) -> np.random.Generator:
    """Make the generator of an annotator's errors on one item."""
    named = f"{seed} {person.name} {given.kind} {given.record}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(named.encode()).digest()))


def _ballot(
    desk: Desk,
    given: Assignment,
    generator: np.random.Generator,
    noise: float | Mapping[str, float],
    margin: float,
) -> Ballot:
    place = desk.items.place(given.record)
    assert place is not None  # it was drawn from them
    item = desk.items[place]
    images = [read_image(desk.items.image(place, f"candidates[{n}].image")) for n in range(len(item.models))]
    scene = _ground(item, images[0].shape[0]).scene(int(item.name.rpartition("/")[2]), item.task)
    scores = [score(scene, image) for image in images]
    choices = answers(desk.job, item.questions(desk.job), scores, generator, noise, margin)
    return Ballot(given.code, uuid.uuid4().hex, as_shown(choices, given.shown))


def answers(
    job: str,
    questions: Sequence[Question],
    scores: Scores,
    generator: np.random.Generator,
    noise: float | Mapping[str, float] = annotator.NOISE,
    margin: float = annotator.MARGIN,
) -> list[Choice]:
    """Answer the questions about one item from its candidates' scores, numbered as in the record."""
    if job == BEST_WORST:
        pairs = {pair.dimension: pair for pair in annotator.annotate_scores(scores, generator, noise, margin)}
        chosen = [(q.name, pairs.get(q.name)) for q in questions]
        return [{"question": name, "best": pair and pair.winner, "worst": pair and pair.loser} for name, pair in chosen]
    seen = [_seen(candidate, generator, noise) for candidate in scores]
    if job == GOOD_SAME_BAD:
        lead = np.mean(list(seen[0].values())) - np.mean(list(seen[1].values()))
        verdict = "same" if abs(lead) < margin else "good" if lead > 0 else "bad"
        return [{"question": question.name, "verdict": verdict} for question in questions]
    return [{"question": question.name, "marks": [_mark(question, one) for one in seen]} for question in questions]


def _seen(
    candidate: Mapping[str, float], generator: np.random.Generator, noise: float | Mapping[str, float]
) -> dict[str, float]:
    """A candidate's scores as the annotator sees them."""
    scale = lambda dimension: noise[dimension] if isinstance(noise, Mapping) else noise
    return {dimension: value + generator.normal() * scale(dimension) for dimension, value in candidate.items()}


def _mark(question: Question, seen: Mapping[str, float]) -> int:
    dimension = _LOOKS_AT.get(question.name, question.name)
    value = float(np.mean(list(seen.values()))) if dimension is None else seen[dimension]
    low, high = question.scale or (0, 1)
    return int(np.clip(round(low + value * (high - low)), low, high))


def _ground(item: Item, resolution: int) -> ProvingGround:
    """The proving ground that a record's scene is of; its id is SPLIT/SEED/TASK/INDEX.

    Raises:
      UserError: it is of none.
    """
    parts = item.name.split("/")
    if len(parts) != 4 or parts[2] != item.task or not (parts[1] + parts[3]).isdecimal():
        raise UserError(
            f"{item.name} is no scene of the proving ground, so nobody knows its right answer: let people annotate it,"
            " or make candidates by `onereward collect --source proving_ground`"
        )
    return _open(parts[0], resolution, int(parts[1]))


@functools.cache
def _open(split: str, resolution: int, seed: int) -> ProvingGround:
    return ProvingGround(split, resolution, seed)
