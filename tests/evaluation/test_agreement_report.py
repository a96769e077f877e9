"""The report of annotators' agreement: every annotator and question is in it, whatever they are called."""

import numpy as np

from onereward_jax.annotation.answer import Answer
from onereward_jax.annotation.votes import lines_of
from onereward_jax.cli import main as cli


def test_the_command_prints_and_reports(tmp_path, capsys):
    generator = np.random.default_rng(0)
    answers = [
        Answer(
            f"r{n}",
            "image_fill",
            "a cat",
            "best_worst",
            question,
            name,
            seconds=4 + n,
            at=float(n),
            best=best,
            worst=worst,
        )
        for n in range(12)
        for name in ("ann", "<b>$o$b", "李\x1b[31m")
        for question in ("structure", "aesthetics")
        for best, worst in [tuple(int(x) for x in generator.permutation(3)[:2])]
    ]
    (tmp_path / "votes.jsonl").write_text(lines_of(answers))
    out = tmp_path / "out"
    arguments = ["--votes", tmp_path / "votes.jsonl", "--json", out / "a.json", "--report", out / "report"]
    assert cli.main(["agreement", *map(str, arguments), "--draws", "100"]) == 0
    shown = capsys.readouterr().out
    assert "structure" in shown
    assert "ann" in shown
    assert "\x1b" not in shown
    page = (out / "report" / "report.html").read_text()
    assert "aesthetics" in page
    assert "&lt;b&gt;$o$b" in page
    assert "<b>$o$b" not in page
    assert (out / "report" / "figures" / "agreement.png").stat().st_size > 5000
    assert (out / "a.json").exists()
