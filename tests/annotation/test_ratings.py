"""Ratings of models: Bradley–Terry against closed forms and simulations, tables, Good–Same–Bad, marks."""

import json
import math

import numpy as np
import pytest

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.ratings import (
    Comparison,
    bradley_terry,
    comparisons_of,
    comparisons_of_choices,
    good_same_bad,
    marks,
    read_table,
    write_table,
)
from onereward_jax.annotation.votes import lines_of
from onereward_jax.cli import main as cli
from onereward_jax.errors import UserError

pytest.importorskip("choix")


def games(a: str, b: str, *counts: int) -> list[Comparison]:
    winners = [winner for winner, n in zip(("model_a", "tie", "model_b"), counts, strict=True) for _ in range(n)]
    return [Comparison(a, b, winner, "image_fill", f"{a}{b}{n}") for n, winner in enumerate(winners)]


def test_two_models_have_the_odds_of_their_wins():
    rows = bradley_terry(games("x", "y", 30, 8, 10), draws=50)
    odds = (30 + 4 + 0.5) / (10 + 4 + 0.5)  # ties half, and one tie more
    assert [row["model"] for row in rows] == ["x", "y"]
    assert rows[0]["rating"] - rows[1]["rating"] == pytest.approx(400 * math.log10(odds))
    assert rows[0]["rating"] + rows[1]["rating"] == pytest.approx(2000)
    assert (rows[0]["n"], rows[0]["wins"]) == (48, pytest.approx(34 / 48))
    low, high = rows[0]["ci95"]
    assert low < rows[0]["rating"] < high


def test_a_model_that_always_won_has_a_rating():
    rows = bradley_terry(games("x", "y", 9, 0, 0), draws=20)
    assert rows[0]["rating"] - rows[1]["rating"] == pytest.approx(400 * math.log10(9.5 / 0.5))


def test_simulated_ratings_are_found_again():
    generator = np.random.default_rng(0)
    true = dict(zip("abcde", (1200, 1100, 1000, 900, 800), strict=True))
    found = []
    for number in range(4000):
        a, b = generator.choice(list(true), 2, replace=False)
        won = generator.random() < 1 / (1 + 10 ** ((true[b] - true[a]) / 400))
        found.append(Comparison(str(a), str(b), "model_a" if won else "model_b", source=str(number)))
    rows = bradley_terry(found, draws=100)
    assert [row["model"] for row in rows] == list(true)
    for row in rows:
        assert row["rating"] == pytest.approx(true[row["model"]], abs=30)
        low, high = row["ci95"]
        assert low - 15 < true[row["model"]] < high + 15
        assert 15 < high - low < 80


def test_models_that_nothing_connects_are_refused():
    with pytest.raises(UserError, match="connect"):
        bradley_terry(games("a", "b", 1, 0, 1) + games("c", "d", 1, 0, 1))


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_a_table_is_read_as_it_was_written(tmp_path, name):
    rows = [*games('x, "the" model', "y\nz", 1, 1, 1), Comparison("x", "ÿ", "both_bad", source="s", annotator="ann")]
    write_table(tmp_path / name, rows)
    assert read_table(tmp_path / name) == rows


def test_lmarena_tables_are_read(tmp_path):
    file = tmp_path / "arena.jsonl"
    file.write_text(
        '{"model_a": "x", "model_b": "y", "winner": "tie (bothbad)", "tstamp": 1.0, "turn": 1}\n'
        '{"model_a": "x", "model_b": "y", "winner": "model_b", "language": null}\n'
    )
    assert [one.winner for one in read_table(file)] == ["tie", "model_b"]
    assert read_table(file)[0].source != read_table(file)[1].source


@pytest.mark.parametrize(
    ("line", "words"),
    [("x,x,tie", "model_b"), ("x,,tie", "model_b"), ("x,y,left", "winner"), ("x,y", "winner")],
)
def test_bad_rows_are_named(tmp_path, capsys, line, words):
    file = tmp_path / "table.csv"
    file.write_text(f"model_a,model_b,winner\nx,y,tie\n{line}\n")
    with pytest.raises(UserError):
        read_table(file)
    assert f"row 2: {words}" in capsys.readouterr().err
    assert len(read_table(file, bad_share=0.5)) == 1


def test_good_same_bad_counts_sides_alike():
    rows = good_same_bad(games("x", "y", 5, 2, 1) + games("y", "x", 1, 0, 2))
    assert [row["task"] for row in rows] == ["all", "image_fill"]
    assert (rows[0]["good"], rows[0]["same"], rows[0]["bad"], rows[0]["n"]) == (7, 2, 2, 11)
    assert rows[0]["difference"] == pytest.approx(5 / 11)
    low, high = rows[0]["ci95"]
    assert low < 5 / 11 < high


def verdict(record: str, value: str, models=("x", "y")) -> Answer:
    return Answer(record, "image_fill", "p", "good_same_bad", "overall", "ann", verdict=value, models=models)


def test_verdicts_become_comparisons():
    found = comparisons_of([verdict("r", "bad"), verdict("s", "same")])
    assert [(one.winner, one.task) for one in found] == [("model_b", "image_fill"), ("tie", "image_fill")]
    assert found[0].source != found[1].source
    assert comparisons_of([verdict("r", "good", models=("x", "x"))]) == []
    with pytest.raises(UserError, match=r"sampling\.model"):
        comparisons_of([verdict("r", "good", models=("x", ""))])


def test_the_best_candidates_model_won_over_the_worsts():
    def choice(best, worst, models, question="structure"):
        return Answer(
            "r", "image_fill", "p", "best_worst", question, "ann", best=best, worst=worst, models=models, source="s"
        )

    answers = [
        choice(2, 0, ("x", "x", "y", "")),
        choice(2, 0, ("x", "x", "x")),
        choice(1, 0, ("", "y")),
        choice(None, None, ("x", "y")),
        choice(None, None, ("x", "y", "y")),
        choice(0, 1, ("x", "y"), "aesthetics"),
    ]
    found = comparisons_of_choices(answers)
    assert [one[:3] for one in found["structure"]] == [("y", "x", "model_a"), ("x", "y", "tie")]
    assert [one[:3] for one in found["aesthetics"]] == [("x", "y", "model_a")]


def test_marks_are_averaged_by_task_model_and_criterion():
    def mark(record, candidate, question, value):
        return Answer(
            record, "image_fill", "p", "rating", question, "ann", candidate=candidate, mark=value, models=("x", "y")
        )

    answers = [mark(str(n), n % 2, "usability", int(n % 4 > 0)) for n in range(8)]
    answers += [mark(str(n), 0, "structure", 3 + n % 3) for n in range(6)]
    rows = {(row["criterion"], row["model"]): row for row in marks(answers)}
    assert rows["usability", "x"]["mean"] == 0.5
    assert rows["usability", "y"]["mean"] == 1
    low, high = rows["usability", "y"]["ci95"]
    assert low < 1 == high
    assert rows["structure", "x"]["mean"] == 4
    low, high = rows["structure", "x"]["ci95"]
    assert 1 <= low < 4 < high <= 5
    assert [row["criterion"] for row in marks(answers)] == ["usability", "usability", "structure"]


def test_the_command_prints_tables(tmp_path, capsys):
    write_table(tmp_path / "t.csv", games("x", "y", 3, 1, 2))
    assert cli.main(["rank", "--table", str(tmp_path / "t.csv"), "--json", str(tmp_path / "out" / "r.json")]) == 0
    shown = capsys.readouterr().out
    assert "x vs y" in shown
    assert (tmp_path / "out" / "r.json").exists()
    (tmp_path / "v.jsonl").write_text(lines_of([verdict("r", "good")]))
    assert cli.main(["rank", "--votes", str(tmp_path / "v.jsonl")]) == 0
    assert cli.main(["rank", "--table", str(tmp_path / "t.txt")]) == 2


def test_a_dimension_that_connects_no_models_leaves_the_others(tmp_path, capsys):
    def choice(models, question):
        return Answer("r", "image_fill", "p", "best_worst", question, "ann", best=0, worst=1, models=models)

    apart = [choice(("a", "b"), "aesthetics"), choice(("c", "d"), "aesthetics")]
    file, figures = tmp_path / "v.jsonl", tmp_path / "r.json"
    file.write_text(lines_of([*apart, choice(("a", "b"), "structure")]))
    assert cli.main(["rank", "--votes", str(file), "--json", str(figures)]) == 0
    assert "aesthetics" in capsys.readouterr().err
    found = json.loads(figures.read_text())
    assert set(found["ratings_by_dimension"]) == {"structure"}
    assert set(found["not_rated"]) == {"aesthetics"}
    file.write_text(lines_of(apart))
    assert cli.main(["rank", "--votes", str(file)]) == 2
