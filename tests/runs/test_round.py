"""A round makes the next judge, whatever kills it, and says what the old one had missed."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import open_records, write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.errors import UserError
from onereward_jax.runs import round as module
from onereward_jax.runs.judge import new_judge
from onereward_jax.weights.safetensors import read_header
from tests.support import tiny_fill
from tests.support.chain import JUDGE
from tests.support.collecting import Processes, contents
from tests.support.preference_examples import picture

SIDE = 32
TRAINING = {
    "data.task_weights.image_extend": 0,
    "data.task_weights.object_removal": 0,
    "data.task_weights.text_rendering": 0,
    "train.num_steps": 1,
    "train.batch_size": 2,
    "optimizer.warmup_steps": 0,
    "optimizer.decay_steps": 0,
    "judge.ema_decay": 0,
}


def earlier(name: str) -> Record:
    candidates = tuple(Candidate(picture(number, SIDE, SIDE)) for number in (1, 2))
    return Record(name, "image_fill", "a red circle", candidates, pairs=(Preference("structure", 0, 1),))


def arguments(root: Path) -> list[str]:
    collected = ["--source=proving_ground", f"--resolution={SIDE}", "--task=image_fill", "--count=6"]
    collected += ["--min_steps=1", "--max_steps=2", "--guided_share=0", "--dtype=float32"]
    collected += [f"--max_sequence_length={tiny_fill.T5_LENGTH}"]
    models = [f"--{name}={root / name}" for name in ("policy", "base", "judge", "earlier", "workdir")]
    training = [f"--config.{name}={value}" for name, value in TRAINING.items()]
    of_round = ["--held_out_share=.4", "--simulated=2", "--overlap=1", "--pairs=all"]
    return ["round", "--config=miniature/judge", *training, *collected, *models, *of_round]


def ended(process: int) -> bool:
    """Whether a process is no more, or a zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Of a round that was killed as soon as it had pairs, and resumed; `root / "killed"` is a copy from between."""
    root = tmp_path_factory.mktemp("round")
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base")
    shutil.copytree(root / "base", root / "policy")
    new_judge(load_config("miniature/judge", JUDGE), root / "judge_tokenizer").save_pretrained(root / "judge")
    for part in ("train", "test"):
        write_records(root / "earlier" / part, iter([earlier(f"{part} {n}") for n in range(2)]), "folder")
    with Processes() as processes:
        process = processes.start(arguments(root))
        while not (root / "workdir" / "pairs").is_dir() and not ended(process):
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        assert processes.ended() == -signal.SIGKILL
        assert not (root / "workdir" / "judge" / "export").exists()
        shutil.copytree(root / "workdir", root / "killed")
        processes.start(arguments(root))
        assert processes.ended() == 0
    return root


def test_a_killed_round_resumes_where_it_was(root):
    workdir, killed = root / "workdir", root / "killed"
    for stage in ("candidates", "pairs"):
        assert contents(killed / stage).items() <= contents(workdir / stage).items()  # training adds manifests
    models = {
        candidate.sampling["model"] for record in open_records(workdir / "pairs") for candidate in record.candidates
    }
    assert models == {str(root / "policy"), str(root / "base")}
    balance = json.loads((workdir / "judge" / "balance.json").read_text())["train"]["image_fill"]
    pairs = [pair for record in open_records(workdir / "pairs") for pair in record.pairs]
    assert sum(balance.values()) == len(pairs) + 2  # of the earlier data
    old, new = (read_header(path / "model.safetensors") for path in (root / "judge", workdir / "judge" / "export"))
    assert old.keys() == new.keys()


def test_the_report_compares_both_judges(root):
    report = root / "workdir" / "report"
    found = json.loads((report / "report.json").read_text())
    records = [open_records(root / "workdir" / "pairs" / "test"), open_records(root / "earlier" / "test")]
    for of_set, of_data in zip((found["round"], found["earlier"]), records, strict=True):
        count = sum(len(record.pairs) for record in of_data)
        assert of_set["old"]["overall"]["n"] == of_set["model"]["overall"]["n"] == count
        assert of_set["differences"]["old"]["overall"]["n"] == count
        kinds = [cell for cells in of_set["kinds"].values() for cell in cells.values()]
        assert sum(cell["n"] for cell in kinds) == count
        for cell in kinds:
            assert cell["n"] == cell["found"] + cell["lost"] + cell["right"] + cell["wrong"]
    assert found["round"]["annotators"]["overall"]["n"] > 0
    assert found["round"]["policy_preferred"]["n"] > 0
    page = (report / "report.html").read_text()
    assert all((report / name / "report.html").is_file() and f"{name}/report.html" in page for name in found)


def test_people_are_waited_for(root, tmp_path):
    candidates = tmp_path / "candidates"
    shutil.copytree(root / "killed" / "candidates", candidates)
    of = module.Round("policy", "base", "judge", simulated=0)
    module._vote(of, candidates)  # all have voted
    (candidates / "votes.sqlite").unlink()
    with pytest.raises(UserError, match=r"0 of 6 records have a vote.*onereward annotate --data"):
        module._vote(of, candidates)


def test_a_directory_is_of_one_round(tmp_path):
    of = module.Round("policy", "base", "judge", earlier=("a",))
    module._claim(of, tmp_path / "new")
    module._claim(of, tmp_path / "new")
    module._claim(dataclasses.replace(of, min_voted=0.9), tmp_path / "new")
    with pytest.raises(UserError, match="another held_out_share"):
        module._claim(dataclasses.replace(of, held_out_share=0.5), tmp_path / "new")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        module._claim(of, tmp_path / "other")


def test_new_pairs_can_weigh_more():
    config = load_config("miniature/judge")
    of = module.Round("policy", "base", "old", earlier=("a", "b"), weight=2)
    training = of.training(config, Path("w"))
    assert training.judge.start == "old"
    assert list(training.judge.data) == ["w/pairs", "w/pairs", "a", "b"]
    assert np.isclose(training.judge.ema_decay, config.judge.ema_decay)
