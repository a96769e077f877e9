"""Label Studio: tasks of a project out, its export in, whatever control gave the labels."""

import json
from xml.etree import ElementTree as xml

import pytest

from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.data.preferences.folder import write_folder
from onereward_jax.data.preferences.importers import Imported
from onereward_jax.data.preferences.record import BadRecord, Candidate, Record, Vote
from onereward_jax.errors import UserError
from tests.support.preference_examples import picture

PROMPT = 'a <b>"cat"</b> 🐞'


def candidates(number: int, count: int = 3) -> Record:
    made = tuple(Candidate(picture(10 * number + n, 8, 8), {"model": "x", "seed": n}) for n in range(count))
    return Record(f"r{number}", "image_fill", PROMPT, made, image=picture(number, 8, 8), notes={"request": number})


def label(kind: str, name: str, value) -> dict:
    return {"id": "Dx", "from_name": name, "to_name": "candidate_1", "type": kind, "origin": "manual", "value": value}


def choice(name: str, value: str) -> dict:
    return label("choices", name, {"choices": [value]})


@pytest.fixture
def project(tmp_path):
    """Tasks of two records of three candidates."""
    write_folder(tmp_path / "data", [candidates(0), candidates(1)], "candidates-0.jsonl")
    arguments = ["convert-preferences", "--from", tmp_path / "data", "--to", tmp_path / "project"]
    assert cli.main([*map(str, arguments), "--form", "label_studio"]) == 0
    return tmp_path / "project"


def export(project, *annotations) -> None:
    """What Label Studio exports when its first task has these annotations."""
    tasks = json.loads((project / "tasks.json").read_text())
    for number, task in enumerate(tasks, 1):
        task |= {"id": number, "project": 1, "annotations": [], "predictions": []}
    tasks[0]["annotations"] = [
        {"id": number, "was_cancelled": False, "ground_truth": False, "lead_time": 4.2} | one
        for number, one in enumerate(annotations)
    ]
    (project / "export.json").write_text(json.dumps(tasks))


def imported(project):
    return Imported("label_studio", project / "export.json", inside_only=True)


def test_the_interface_asks_for_the_best_and_the_worst_of_every_dimension(project):
    view = xml.fromstring((project / "config.xml").read_text())
    assert [image.get("name") for image in view.iter("Image")] == ["source", *(f"candidate_{n}" for n in (1, 2, 3))]
    controls = [choices.get("name") for choices in view.iter("Choices")]
    assert len(controls) == 8
    assert {"structure_best", "structure_worst"} <= set(controls)
    tasks = json.loads((project / "tasks.json").read_text())
    assert all(f"${name}" in {image.get("value") for image in view.iter("Image")} for name in ("image", "candidate_3"))
    assert tasks[0]["data"]["prompt"] == PROMPT
    assert tasks[0]["data"]["candidate_2"].startswith("/data/local-files/?d=images/")
    # Nothing that annotators can open says what made a candidate.
    assert set(tasks[0]["data"]) == {"id", "task", "prompt", "image", *(f"candidate_{n}" for n in (1, 2, 3))}


def test_candidates_are_in_an_order_of_chance(tmp_path):
    write_folder(tmp_path / "data", [candidates(n) for n in range(30)], "candidates-0.jsonl")
    arguments = ["convert-preferences", "--from", tmp_path / "data", "--to", tmp_path / "project"]
    assert cli.main([*map(str, arguments), "--form", "label_studio"]) == 0
    keys = [json.loads(line) for line in (tmp_path / "project" / "key.jsonl").read_text().splitlines()]
    assert len({tuple(key["order"]) for key in keys}) > 1
    export(tmp_path / "project")
    assert [one.candidates for one in imported(tmp_path / "project")] == [candidates(n).candidates for n in range(30)]


@pytest.mark.parametrize("order", [None, [0, 0, 1], [0, 1], ["0", "1", "2"], [0, 1, [2]]])
def test_a_key_of_another_project_is_named(project, order):
    export(project, {"completed_by": 1, "result": []})
    key = {"id": "r0", "order": order, "sampling": [{}, {}, {}], "notes": {}}
    (project / "key.jsonl").write_text(json.dumps(key))
    with pytest.raises(BadRecord, match=r"key\.jsonl"):
        imported(project)[0]
    (project / "key.jsonl").write_text("[]")
    with pytest.raises(UserError, match=r"key\.jsonl"):
        imported(project)


def test_an_export_becomes_the_records_with_votes(project, tmp_path):
    export(
        project,
        {
            "completed_by": {"id": 3, "email": "ann@lab"},
            "result": [
                choice("structure_best", "3"),
                choice("structure_worst", "1"),
                choice("aesthetics_best", "no difference"),
                choice("aesthetics_worst", "no difference"),
                label("textarea", "reason", {"text": ["a seam"]}),
            ],
        },
        {"completed_by": 7, "result": [label("ranker", "structure", {"ranker": ["2", "1", "3"]})]},
        {"completed_by": 8, "was_cancelled": True, "result": [choice("structure_best", "1")]},
    )
    found = imported(project)
    assert len(found) == 2
    given = candidates(0)
    record = found[0]
    assert (record.id, record.prompt, record.image, record.candidates) == ("r0", PROMPT, given.image, given.candidates)
    assert record.notes == {"request": 0, "reasons": [{"annotator": "ann@lab", "reason": "a seam"}]}
    order = json.loads((project / "key.jsonl").read_text().splitlines()[0])["order"]
    ranked = ((1, 0), (1, 2), (0, 2))
    assert record.votes == (
        Vote("structure", "ann@lab", order[2], order[0]),
        Vote("aesthetics", "ann@lab", None, None),
        *(Vote("structure", "annotator 7", order[best], order[worst]) for best, worst in ranked),
    )
    assert found[1].votes == ()
    arguments = ["convert-preferences", "--layout", "label_studio", "--from", project / "export.json"]
    assert cli.main([*map(str, arguments), "--to", str(tmp_path / "mine")]) == 0
    assert [one.votes for one in open_records(tmp_path / "mine")] == [record.votes, ()]


def of_two(tmp_path, *results):
    """A task made by other hands, its two images uploaded."""
    for name in ("a.png", "b.png"):
        (tmp_path / "upload" / "1").mkdir(parents=True, exist_ok=True)
        (tmp_path / "upload" / "1" / name).write_bytes(picture(len(name), 8, 8))
    data = {"prompt": "a cat", "candidates": [f"/data/upload/1/{name}" for name in ("a.png", "b.png")]}
    task = {"id": 5, "data": data, "annotations": [{"completed_by": 1, "result": list(results)}]}
    (tmp_path / "export.json").write_text(json.dumps([task]))
    return imported(tmp_path)[0]


@pytest.mark.parametrize(
    ("result", "vote"),
    [
        (label("pairwise", "consistency", {"selected": "right"}), ("consistency", 1, 0)),
        (label("pairwise", "pw", {"selected": "left"}), ("aesthetics", 0, 1)),
        (choice("structure", "2"), ("structure", 1, 0)),
        (choice("structure", "no difference"), ("structure", None, None)),
        (label("ranker", "rank", {"ranker": {"rank": ["2", "1"]}}), ("aesthetics", 1, 0)),
        (label("ranker", "rank", {"ranker": {"best": ["1"], "worst": ["2"]}}), ("aesthetics", 0, 1)),
    ],
)
def test_other_controls(tmp_path, result, vote):
    dimension, best, worst = vote
    record = of_two(tmp_path, result)
    assert record.votes == (Vote(dimension, "annotator 1", best, worst),)
    assert record.id == "task 5"


@pytest.mark.parametrize(
    "result",
    [
        choice("structure_best", "1"),
        choice("structure", "seven"),
        choice("structure", "9"),
        label("ranker", "rank", {"ranker": ["1", "x"]}),
        label("ranker", "rank", {"ranker": ["1", "1"]}),
        {"type": "choices"},
        7,
    ],
)
def test_labels_that_are_none_are_a_bad_record(tmp_path, result):
    with pytest.raises(BadRecord):
        of_two(tmp_path, result)


@pytest.mark.parametrize("address", ["https://x/a.png", "/data/local-files/?d=../../a.png", 3, "s3://b/a.png"])
def test_images_elsewhere_are_a_bad_record(project, address):
    export(project, {"completed_by": 1, "result": []})
    tasks = json.loads((project / "export.json").read_text())
    tasks[0]["data"]["candidate_1"] = address
    (project / "export.json").write_text(json.dumps(tasks))
    with pytest.raises(BadRecord, match="image"):
        imported(project)[0]


def test_records_of_two_kinds_are_two_projects(tmp_path, capsys):
    write_folder(tmp_path / "data", [candidates(0), candidates(1, 2)], "candidates-0.jsonl")
    arguments = ["convert-preferences", "--from", tmp_path / "data", "--to", tmp_path / "project"]
    assert cli.main([*map(str, arguments), "--form", "label_studio"]) == 2
    assert "r1" in capsys.readouterr().err
    assert not (tmp_path / "project").exists()
