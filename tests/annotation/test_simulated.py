"""Simulated annotators vote through the database that people's votes go to."""

import random

import numpy as np
import pytest

from onereward_jax.annotation import simulated
from onereward_jax.annotation.assign import Desk, Rules
from onereward_jax.annotation.items import Items
from onereward_jax.annotation.questions import GOOD_SAME_BAD, JOBS, RATING, questions_of
from onereward_jax.annotation.store import Store
from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import open_candidates
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.record import Candidate, Record
from onereward_jax.images.grid import png
from onereward_jax.proving_ground import ProvingGround, defects
from onereward_jax.tasks import TASKS


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder of candidates: the right answer, and the right answer with a defect, of three scenes a task."""
    ground, directory = ProvingGround("test", 64), tmp_path_factory.mktemp("scenes")
    records = []
    for task in TASKS:
        for index in range(3):
            scene, generator = ground.scene(index, task), np.random.default_rng(index)
            worse = scene.target
            for kind in defects.applicable(scene):
                worse = defects.apply(scene, worse, kind, 1.0, generator)
            images = {"a": scene.target, "b": worse}
            candidates = tuple(Candidate(png(image), {"model": name}) for name, image in images.items())
            records.append(
                Record(scene.sample.id, task, scene.sample.prompt, candidates, image=png(scene.sample.image))
            )
    write_folder(directory, records, file="candidates-00000.jsonl")
    return directory


@pytest.mark.parametrize("job", JOBS)
def test_they_see_what_is_better_and_agree(scenes, tmp_path, job):
    items = Items(open_candidates(scenes), job)
    desk = Desk(
        Store(tmp_path / "votes.sqlite"), items, Rules(overlap=1.0, overlap_votes=3, repeats=0), rng=random.Random(0)
    )
    assert simulated.vote(desk, annotators=3, seed=1) == 3 * len(items)
    assert simulated.vote(desk, annotators=3, seed=1) == 0
    answers = desk.store.answers()
    desk.close()
    desk.store.close()
    questions = {(item.name, q.name) for item in (items[n] for n in range(len(items))) for q in item.questions(job)}
    assert {(answer.record, answer.question) for answer in answers} == questions
    if job == RATING:
        marks = [np.mean([a.mark for a in answers if a.candidate == candidate]) for candidate in (0, 1)]
        assert marks[0] > marks[1]
    else:
        leads = [a.verdict == "good" if job == GOOD_SAME_BAD else a.best == 0 for a in answers]
        behind = [a.verdict == "bad" if job == GOOD_SAME_BAD else a.best == 1 for a in answers]
        assert sum(leads) > 3 * sum(behind)


def test_errors_depend_on_nothing_but_annotator_and_item(scenes, tmp_path):
    """Not on the order in which records are given, nor on where a run stopped and another resumed."""
    found = []
    for number, seed in enumerate((7, 7, 8)):
        desk = Desk(
            Store(tmp_path / f"{number}.sqlite"),
            Items(open_candidates(scenes), "best_worst"),
            Rules(overlap=1.0, overlap_votes=2, repeats=0.0),
            rng=random.Random(number),
        )
        if number == 1:  # another order: annotator 2 begins, and leaves some open
            desk.draw(desk.store.add_person("simulated-2"), 4)
            simulated.vote(desk, annotators=1, seed=seed)
        simulated.vote(desk, annotators=2, seed=seed)
        found.append({(a.annotator, a.record, a.question): (a.best, a.worst) for a in desk.store.answers()})
        desk.close()
        desk.store.close()
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_command_gives_the_same_votes_for_a_seed(scenes, tmp_path):
    """The same repeats, too: they are drawn."""
    found = []
    for name in ("a", "b"):
        votes = ["--votes", str(tmp_path / name), "--repeats=0.4", "--repeat_gap=2", "--seed=5"]
        assert cli.main(["annotate", "--data", str(scenes), "--simulated=1", *votes]) == 0
        store = Store(tmp_path / name)
        found.append([(a.record, a.kind, a.question, a.best, a.worst) for a in store.answers()])
        store.close()
    assert found[0] == found[1]
    assert {kind for _, kind, *_ in found[0]} == {"plain", "repeat"}


def test_answers_follow_the_scores():
    questions = questions_of("best_worst", "image_fill", "a red circle")
    scores = [{q.name: value for q in questions} for value in (0.2, 0.9, 0.5)]
    found = simulated.answers("best_worst", questions, scores, np.random.default_rng(0), noise=0.0)
    assert [(one["best"], one["worst"]) for one in found] == [(1, 0)] * len(questions)
    alike = simulated.answers("best_worst", questions, scores[:1] * 2, np.random.default_rng(0), noise=0.0)
    assert [(one["best"], one["worst"]) for one in alike] == [(None, None)] * len(questions)
    marks = simulated.answers(
        "rating", questions_of("rating", "image_fill", "a"), scores, np.random.default_rng(0), noise=0.0
    )
    assert marks[0]["marks"] == [0, 1, 0]
    assert marks[-1]["marks"] == [2, 5, 3]


def test_records_of_ones_own_are_refused(scenes, tmp_path, capsys):
    record = next(iter(open_candidates(scenes)[n] for n in range(1)))
    write_folder(
        tmp_path / "own", [Record("mine", record.task, record.prompt, record.candidates)], file="candidates-0.jsonl"
    )
    assert cli.main(["annotate", "--data", str(tmp_path / "own"), "--simulated", "2"]) == 2
    assert "mine is no scene" in capsys.readouterr().err
