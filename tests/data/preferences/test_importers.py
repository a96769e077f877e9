"""Layouts of public sets, written by hand from their descriptions, and the converting command."""

import json

import pytest

from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import open_records
from onereward_jax.data.preferences.importers import Imported
from onereward_jax.data.preferences.record import BadRecord, Candidate, Preference, Vote
from onereward_jax.errors import UserError
from tests.support.preference_examples import picture, records, write_lines

NAMES = ("a.webp", "b.webp", "c.webp", "d.webp")
IMAGE_REWARD = [{"id": "005658-0040", "prompt": "a portal", "generations": list(NAMES[:3]), "ranking": [2, 1, 2]}]
IMAGE_REWARD_DB = [
    {
        "image_path": name,
        "prompt_id": "000864-0061",
        "prompt": "a holy woman",
        "classification": "People",
        "image_amount_in_total": 9,
        "rank": rank,
        "overall_rating": 4,
        "image_text_alignment_rating": alignment,
        "fidelity_rating": 4,
    }
    for name, rank, alignment in (("a.webp", 5, 3), ("b.webp", 1, 3), ("c.webp", 3, 7))
] + [
    {"image_path": name, "prompt_id": "000864-0062", "prompt": "a man", "rank": rank}
    for name, rank in (("c.webp", 1), ("d.webp", 2))
]
HPD_V2_TRAIN = [{"human_preference": [0, 1], "prompt": "a cup", "file_path": ["a.webp", "b.webp"], "user_hash": "u1"}]
HPD_V2_TEST = [
    {
        "prompt": "a cup",
        "image_path": list(NAMES[:3]),
        "rank": [1, 2, 3],
        "raw_annotation": [{"rank": [1, 2, 3], "user_hash": "u1"}, {"rank": [2, 1, 3], "user_hash": "u2"}],
    }
]
HPD_V3 = [
    {
        "prompt": "a lamp",
        "choice_dist": [12, 7],
        "confidence": 0.9999907,
        "path1": "b.webp",
        "path2": "a.webp",
        "model1": "flux",
        "model2": "infinity",
    }
]
EDIT_REWARD = [
    {
        "prompt": "Make the sandwich a hot dog.",
        "choice_dist": None,
        "confidence": None,
        "path_src": "d.webp",
        "path1": "a.webp",
        "path2": "b.webp",
        "model1": "ovis_u1",
        "model2": "qwen_edit",
        "model1_dim1_score": 3,
        "model1_dim2_score": 4,
        "model1_overall_score": 7,
        "model2_dim1_score": 4,
        "model2_dim2_score": 2,
        "model2_overall_score": 6,
        "tie_case": False,
    }
]


@pytest.fixture
def write(tmp_path):
    for seed, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(picture(seed, kind="WEBP"))

    def write(entries, file="set.json"):
        path = tmp_path / file
        if path.suffix == ".parquet":
            pyarrow = pytest.importorskip("pyarrow")
            pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(entries), path)
        else:
            path.write_text(json.dumps(entries))
        return path

    return write


def test_image_reward(write):
    (record,) = Imported("image_reward", write(IMAGE_REWARD))
    assert (record.id, record.task, record.prompt) == ("005658-0040", "image_fill", "a portal")
    assert record.candidates == tuple(Candidate(picture(seed, kind="WEBP")) for seed in range(3))
    assert record.pairs == (Preference("aesthetics", 1, 0), Preference("aesthetics", 1, 2))
    assert {vote.annotator for vote in record.votes} == {"ImageReward"}


@pytest.mark.parametrize("file", ["set.json", "metadata-train.parquet"])
def test_image_reward_db(write, file):
    first, second = Imported("image_reward", write(IMAGE_REWARD_DB, file))
    assert (first.id, first.prompt, len(first.candidates)) == ("000864-0061", "a holy woman", 3)
    assert set(first.pairs) == {
        Preference("aesthetics", 1, 0),
        Preference("aesthetics", 1, 2),
        Preference("aesthetics", 2, 0),
        Preference("text_alignment", 2, 0),
        Preference("text_alignment", 2, 1),
    }
    assert first.notes == {"classification": "People"}
    assert second.pairs == (Preference("aesthetics", 0, 1),)


def test_hpd_v2(write):
    (record,) = Imported("hpd_v2", write(HPD_V2_TRAIN))
    assert record.votes == (Vote("aesthetics", "u1", 1, 0),)
    (record,) = Imported("hpd_v2", write(HPD_V2_TEST), dimension="structure")
    # The two annotators disagree on the first two pictures.
    assert record.pairs == (Preference("structure", 0, 2), Preference("structure", 1, 2))
    assert {vote.annotator for vote in record.votes} == {"u1", "u2"}


def test_hpd_v3(write):
    (record,) = Imported("hpd_v3", write(HPD_V3))
    assert record.candidates == (
        Candidate(picture(1, kind="WEBP"), {"model": "flux"}),
        Candidate(picture(0, kind="WEBP"), {"model": "infinity"}),
    )
    assert record.pairs == (Preference("aesthetics", 0, 1),)
    assert record.notes == {"choice_dist": [12, 7], "confidence": 0.9999907}


def test_edit_reward(write):
    (record,) = Imported("edit_reward", write(EDIT_REWARD))
    assert record.image == picture(3, kind="WEBP")
    assert set(record.pairs) == {
        Preference("aesthetics", 0, 1),
        Preference("text_alignment", 1, 0),
        Preference("structure", 0, 1),
    }
    (record,) = Imported("edit_reward", write([EDIT_REWARD[0] | {"tie_case": True}]))
    assert {pair.dimension for pair in record.pairs} == {"text_alignment", "structure"}
    (record,) = Imported("edit_reward", write(EDIT_REWARD), task="object_removal")
    assert record.pairs == (Preference("removal_quality", 0, 1),)


def bench(number: int, ranking: str, compared: str = "AvsB") -> dict:
    """A row of EditReward-Bench, with its images in it."""
    image = lambda seed: {"bytes": picture(seed, kind="WEBP"), "path": f"{seed}.webp"}
    return {
        "id": f"{number}_0",
        "dataset": "3pair",
        "instruction": "Make it a hot dog.",
        "source_image": image(3),
        "candidate_1": image(0),
        "candidate_2": image(1),
        "ranking": ranking,
        "comparison_type": compared,
        "model_1": "ovis_u1",
        "model_2": "qwen_edit",
        "score_1": "7",
        "score_2": None,
    }


def test_edit_reward_bench(write):
    rows = [bench(1, "A>B"), bench(1, "C>A", "AvsC"), bench(1, "B=C", "BvsC"), bench(2, "A>B", "BvsC")]
    found = Imported("edit_reward_bench", write(rows, "train.parquet"))
    won, lost, tied = (found[index] for index in range(3))
    assert [one.pairs for one in (won, lost, tied)] == [
        (Preference("aesthetics", 0, 1),),
        (Preference("aesthetics", 1, 0),),
        (),
    ]
    assert len({one.id for one in (won, lost, tied)}) == 3
    assert (won.image, won.prompt) == (picture(3, kind="WEBP"), "Make it a hot dog.")
    assert won.candidates[1] == Candidate(picture(1, kind="WEBP"), {"model": "qwen_edit"})
    assert won.notes == {"dataset": "3pair", "ranking": "A>B", "comparison_type": "AvsB", "score_1": "7"}
    with pytest.raises(BadRecord, match="layout"):
        found[3]


@pytest.mark.parametrize("grouped", [False, True])
def test_pref_paint(write, tmp_path, grouped):
    ranks = {"img_1_0": [5.5, 1], "img_1_1": [2.0, 3], "img_1_2": [3.5, 2], "img_2_0": [4, 1], "img_2_1": [4, 1]}
    for folder, names in (("inpaint", ranks), ("masks_color", ("img_1_mask_color", "img_2_mask_color"))):
        (tmp_path / folder).mkdir()
        for seed, name in enumerate(names):
            (tmp_path / folder / f"{name}.png").write_bytes(picture(seed))
    by_source = {source: {k: v for k, v in ranks.items() if k.startswith(source)} for source in ("img_1", "img_2")}
    file = write(by_source if grouped else ranks)
    first, second = Imported("pref_paint", file, task="image_extend")
    assert (first.id, first.prompt, first.image) == ("img_1", "", picture(0))
    assert [candidate.image for candidate in first.candidates] == [picture(seed) for seed in range(3)]
    won = {(pair.winner, pair.loser) for pair in first.pairs}
    assert won == {(0, 1), (0, 2), (2, 1)}
    assert first.notes == {"scores": [5.5, 2.0, 3.5]}
    assert second.pairs == ()
    with pytest.raises(BadRecord, match="prompt"):
        Imported("pref_paint", file)[0]
    with pytest.raises(UserError, match="layout"):
        Imported("pref_paint", write({"img_1_0": 5}))


def convert(*arguments) -> int:
    return cli.main(["convert-preferences", *(str(argument) for argument in arguments)])


def test_the_command_converts_both_ways(tmp_path, capsys):
    write_lines(tmp_path / "none", [], {})
    for form in ("tfds", "folder"):
        source = tmp_path / {"tfds": "a", "folder": "tfds"}[form]
        if form == "tfds":
            from onereward_jax.data.preferences.dataset import write_records

            write_records(source, iter(records()), "folder")
        assert convert("--from", source, "--to", tmp_path / form, "--form", form) == 0
        assert capsys.readouterr().out == f"{tmp_path / form}: 3 of 3 records\n"
        assert list(open_records(tmp_path / form)) == records()


def test_the_command_imports_and_names_bad_entries(tmp_path, write, capsys):
    file = write([*HPD_V3, HPD_V3[0] | {"path1": "lost.webp"}, {"prompt": "x"}])
    (tmp_path / "annotations").mkdir()
    file = file.rename(tmp_path / "annotations" / "train.json")
    to = ("--from", file, "--to", tmp_path / "new", "--layout", "hpd_v3", "--images", tmp_path)
    assert convert(*to) == 2
    assert not (tmp_path / "new").exists()
    said = capsys.readouterr().err
    assert f"{file}, entry 1: candidates[0].image lost.webp does not exist: check the path" in said
    assert f"{file}, entry 2: does not have this layout (KeyError('path1')): choose another --layout" in said
    assert "2 of 3 records in" in said
    assert convert(*to, "--bad_share", 0.7, "--form", "tfds") == 0
    assert capsys.readouterr().out.endswith("1 of 3 records\n")
    assert [record.prompt for record in open_records(tmp_path / "new")] == ["a lamp"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "none.json", "--layout", "hpd_v3"), "none.json does not exist"),
        (("--from", "half.json", "--layout", "hpd_v3"), "half.json can't be read, it is no JSON"),
        (("--from", "dict.json", "--layout", "hpd_v3"), "dict.json is not a list of objects"),
        (("--from", "list.json", "--layout", "hpd_v3", "--dimension", "removal_quality"), "is not judged on removal"),
        (("--from", "list.json", "--layout", "hpd_v9"), "invalid choice: 'hpd_v9'"),
        (("--from", "."), "holds no preferences"),
    ],
)
def test_the_command_refuses_in_one_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    for name, text in (("half.json", "["), ("dict.json", "{}"), ("list.json", "[]")):
        (tmp_path / name).write_text(text)
    assert convert(*arguments, "--to", "new") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("layout", "entry"),
    [
        ("image_reward", IMAGE_REWARD[0] | {"ranking": [2, 1]}),
        ("image_reward", IMAGE_REWARD[0] | {"ranking": [2, 1, 2, 1]}),
        ("image_reward", IMAGE_REWARD[0] | {"ranking": ["2", "1", "10"]}),
        ("hpd_v2", HPD_V2_TRAIN[0] | {"human_preference": [1]}),
        ("hpd_v2", HPD_V2_TEST[0] | {"raw_annotation": [{"rank": [1, 2], "user_hash": "u1"}]}),
        ("hpd_v2", {name: value for name, value in HPD_V2_TEST[0].items() if name != "raw_annotation"} | {"rank": [1]}),
        ("edit_reward", EDIT_REWARD[0] | {"model1_dim1_score": "high"}),
    ],
)
def test_a_ranking_of_other_length_than_the_images_is_refused(write, layout, entry):
    (record,) = (imported := Imported(layout, write([entry])))._entries
    with pytest.raises(BadRecord, match=r"entry 0: it ranks .*: give a number for each"):
        imported[record[0]]


def test_a_bad_line_of_a_public_set_is_one_bad_record(tmp_path, write):
    path = write(HPD_V3).with_suffix(".jsonl")
    good = json.dumps(HPD_V3[0] | {"prompt": "a\u2028lamp"}, ensure_ascii=False)
    path.write_text(f'{good}\n{{"prompt": \n[1]\n{good}\n', encoding="utf-8")
    imported = Imported("hpd_v3", path)
    assert len(imported) == 4
    assert [imported[index].prompt for index in (0, 3)] == ["a\u2028lamp"] * 2
    for index, words in ((1, "entry 1: it is no JSON"), (2, "entry 2: it is list and no object")):
        with pytest.raises(BadRecord, match=words):
            imported[index]
    path = write([*IMAGE_REWARD_DB, 3, {"rank": 1, "prompt_id": ["a"]}, {"rank": 1}])
    assert len(Imported("image_reward", path)) == 5


def test_images_outside_their_directory(tmp_path, write, capsys):
    (tmp_path / "inner").mkdir()
    file = write([HPD_V3[0] | {"path1": "../a.webp", "path2": str(tmp_path / "b.webp")}], "inner/set.json")
    arguments = ("--from", file, "--layout", "hpd_v3")
    assert convert(*arguments, "--to", tmp_path / "any") == 0
    capsys.readouterr()
    assert convert(*arguments, "--to", tmp_path / "none", "--inside_only") == 2
    assert "../a.webp leads out of" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
