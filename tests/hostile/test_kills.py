"""Commands that are killed again and again, at random moments, and then let be: they end as if nothing had happened.

The same results, byte for byte, under the same names: nothing is lost, repeated or left over, in the working directory
and in the system's temporary folder. `train` is killed in tests/kill_and_resume and, at every kind of moment of its
loop, in test_chain_of_kills there.
"""

import shutil
from pathlib import Path

import pytest

from onereward_jax.data.preferences.dataset import write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.tasks import TASKS, dimensions_of
from tests.support import multiprocess_trainer, tiny_fill
from tests.support.chain import JUDGE
from tests.support.finetuning_runs import CONFIG, write_pictures
from tests.support.hostile import LONG, Trials
from tests.support.kills import Command, Life, Place, differences, finish, kill, live
from tests.support.preference_examples import picture

KILLS = 5 if LONG else 2  # of a trial, one after the other
LONG_FORM = 4  # trials of a command
TRAINING = {"train.num_steps": 8, "train.batch_size": 2, "train.checkpoint_every": 2, "train.log_every": 1}
COMMANDS = ("make-preferences", "finetune", "train-judge", "export", "two processes")


def onereward(name: str, config: str | Path, fields: dict) -> Command:
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    words = ["-m", "onereward_jax.cli.main", name, "--config", str(config), *overrides, "--workdir", "{root}/run"]
    return Command(words)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """What the commands read: a fill model, images with captions, preference pairs."""
    root = tmp_path_factory.mktemp("given")
    tiny_fill.pipeline(root / "tokenizers").save_pretrained(root / "base")
    write_pictures(root / "pictures")
    records = []
    for number in range(24):
        task = TASKS[number % 4]
        dimension = dimensions_of(task)[number // 4 % len(dimensions_of(task))]
        candidates = tuple(Candidate(picture(2 * number + i, 32, 32)) for i in range(2))
        pair = Preference(dimension, number % 2, 1 - number % 2)
        records.append(Record(str(number), task, "circle", candidates, pairs=(pair,)))
    write_records(root / "pairs", iter(records), "folder")
    return root


def command_of(name: str, given: Path) -> Command:
    of_fill_model = {"max_sequence_length": tiny_fill.T5_LENGTH, "data.resolution": 32}
    if name == "make-preferences":
        fields = {
            "preferences.base": given / "base",
            "preferences.synthetic_scenes_per_task": 2,
            "preferences.scenes_per_task": 2 if LONG else 0,
            "preferences.part_size": 1,
            "preferences.min_steps": 2,
            "preferences.max_steps": 2,
            "preferences.one_step_share": 0.0,
            "preferences.guided_share": 0.0,
        }
        return onereward(name, "miniature/judge", of_fill_model | fields)
    if name == "finetune":
        fields = {
            "model.base": given / "base",
            "data.source": given / "pictures",
            "data.bad_share": 0.2,
            "data.bucket_step": 8,
            "data.max_aspect": 1.0,
            "data.held_out_share": 0.25,
            "optimizer.warmup_steps": 1,
            "finetune.evaluate_every": 2,
            "finetune.held_out_draws": 2,
            "finetune.sample_every": 0,
        }
        return onereward(name, CONFIG, of_fill_model | TRAINING | fields)
    if name == "train-judge":
        fields = {
            "judge.data": f"({str(given / 'pairs')!r},)",
            "judge.held_out_share": 0.3,
            "judge.evaluate_every": 2,
            "judge.keep_best": True,
            "judge.ema_decay": 0.5,
            "judge.questions_per_pair": 1,
            "optimizer.warmup_steps": 1,
        }
        return onereward(name, "miniature/judge", JUDGE | TRAINING | fields)
    if name == "export":
        words = ["export", "--workdir", "{root}/run", "--out", "{root}/out"]
        return Command(["-m", "onereward_jax.cli.main", *words])
    return Command([multiprocess_trainer.__file__, "{root}/run", "2,1,1", "0.02"], count=2)


def begin(name: str, place: Place, given: Path) -> None:
    """What is there before the command: for `export`, a run and an earlier export of it, which is replaced."""
    if name != "export":
        return
    if not (given / "trained").exists():
        trained = Place(given / "trained")
        finish(command_of("finetune", given), trained)
        earlier = command_of("export", given).words + ["--what", "policy"]
        finish(Command(earlier), trained)
    shutil.copytree(given / "trained" / "root", place.root, dirs_exist_ok=True)


def is_whole(name: str, place: Place, before: dict, after: dict) -> bool:
    """Of `export`: a whole model is there at every moment, either the earlier one or the new one."""
    if name != "export":
        return True
    found = place.result()
    models = [
        {path.partition("/")[2]: content for path, content in found.items() if path.startswith(f"{folder.name}/")}
        for folder in place.root.iterdir()
        if folder.name != "run"
    ]
    of = lambda result: {path[4:]: content for path, content in result.items() if path.startswith("out/")}
    return of(before) in models or of(after) in models


@pytest.mark.parametrize("name", COMMANDS if LONG else COMMANDS[:1])
def test_killed_commands_end_as_undisturbed_ones(name, given, tmp_path):
    command, undisturbed = command_of(name, given), Place(tmp_path / "undisturbed")
    begin(name, undisturbed, given)
    before = undisturbed.result()
    life: Life = live(command, undisturbed)
    trials = Trials(f"kills of {name}", short=1, long=LONG_FORM, limit=900.0, each=KILLS)
    for trial in trials:
        with trial:
            place = Place(tmp_path / str(trial.number))
            begin(name, place, given)
            for _ in range(KILLS):
                kill(command, place, life, trial.rng)
                assert is_whole(name, place, before, life.result)
            finish(command, place)
            assert differences(place.result(), life.result) == []
            assert list(place.temporary.iterdir()) == []
            shutil.rmtree(place.root)
    trials.check()
