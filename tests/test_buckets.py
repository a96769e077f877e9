"""Working directories and data in a bucket, by an emulator of Google Cloud Storage on the loopback."""

import io
import json
import os
import secrets
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from onereward_jax import buckets
from onereward_jax.atomic_files import OUTPUT_FILE, atomic_directory
from onereward_jax.candidates import collect
from onereward_jax.cli.main import main
from onereward_jax.config.find import find_model
from onereward_jax.config.load import load_config
from onereward_jax.config.schema import RewardFeedback
from onereward_jax.config.workdir import claim_workdir
from onereward_jax.data.preferences.dataset import COMPLETE, write_records
from onereward_jax.data.preferences.record import Candidate, Preference, Record
from onereward_jax.data.requests.source import read_split
from onereward_jax.errors import Fault, UserError
from onereward_jax.evaluation import comparison, evaluate
from onereward_jax.runs.judge import judge_training
from onereward_jax.runs.request_report import has_begun
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.training.checkpoint import Checkpointer, CheckpointWarning
from tests.support import collecting, evaluating, small_training, tiny_judge
from tests.support.bucket import emulator
from tests.support.multiprocess_trainer import config_of
from tests.support.preference_examples import picture


@pytest.fixture(scope="module")
def bucket():
    with emulator() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield f"gs://bucket/{secrets.token_hex(4)}"


@pytest.fixture
def another_machine(bucket, tmp_path, monkeypatch):
    """Makes this process see the bucket as a machine that has no local copies yet."""

    def move() -> None:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        place.mkdir()
        monkeypatch.setenv("XDG_CACHE_HOME", str(place))
        monkeypatch.setattr(buckets, "_copies", {})
        monkeypatch.setattr(buckets, "_read", {})

    move()
    return move


def files_in(url: str) -> dict[str, bytes]:
    return {name: buckets.path(f"{url}/{name}").read_bytes() for name in buckets.listed(url)}


def files_at(directory: Path) -> dict[str, bytes]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


# --------------------------------------------------------------------------------------------------------- local copies


def test_a_copy_is_as_the_bucket_and_brings_what_changed(bucket, another_machine):
    url = f"{bucket}/copied"
    there = buckets.local(url)
    (there / "export").mkdir(parents=True)
    (there / "export" / "a.bin").write_bytes(bytes(3000))
    (there / "metrics.jsonl").write_text("1\n")
    for temporary in (".lock", ".0123456789abcdef.tmp", "programs/xla", "checkpoints/step_00000001.json", "prompts/p"):
        (there / temporary).parent.mkdir(exist_ok=True)
        (there / temporary).write_text("not copied")
    buckets.push(there)
    assert files_in(url) == {"export/a.bin": bytes(3000), "metrics.jsonl": b"1\n"}

    another_machine()
    here = buckets.local(url)
    assert here != there
    buckets.pull(here)
    assert files_at(here) == files_in(url)
    (here / "metrics.jsonl").write_text("1\n2\n")
    (here / "export" / "a.bin").unlink()
    buckets.push(here / "metrics.jsonl")
    assert files_in(url) == {"metrics.jsonl": b"1\n2\n"}

    (here / "half.json").write_text("a run was killed before it was in the bucket")
    (here / "metrics.jsonl").write_text("1\n2\n3\n")
    buckets.pull(here)
    assert files_at(here) == files_in(url) == {"metrics.jsonl": b"1\n2\n"}


def test_an_output_is_whole_where_its_mark_is(bucket, another_machine, monkeypatch):
    url = f"{bucket}/output"
    out = buckets.local(url, "output")
    put, seen = buckets._Copy._put, []

    def watched(copy, name):
        seen.append((name, OUTPUT_FILE in buckets.listed(url)))
        put(copy, name)

    monkeypatch.setattr(buckets._Copy, "_put", watched)
    for content in ("old", "new"):
        with atomic_directory(out) as partial:
            (partial / "weights").write_text(content)
        seen.clear()
        buckets.push_all()
        assert seen == [("weights", False), (OUTPUT_FILE, False)]
    assert files_in(url)["weights"] == b"new"


def test_a_cleaned_cache_removes_nothing_in_the_bucket(bucket, another_machine):
    url = f"{bucket}/cleaned"
    workdir = claim_workdir(url, config_of("1,1,1"))
    (workdir / "metrics.jsonl").write_text("1\n")
    buckets.push(workdir)
    whole = files_in(url)
    assert whole.keys() == {"config.json", "metrics.jsonl"}
    shutil.rmtree(workdir)
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_text("2\n")
    with pytest.raises(Fault, match=f"^{url} can't be written \\(its local copy, {workdir}, was removed or cleaned"):
        buckets.push_all()
    assert files_in(url) == whole
    another_machine()
    assert files_at(claim_workdir(url, config_of("1,1,1"))).items() >= whole.items()


def test_what_is_read_is_copied_once(bucket, another_machine):
    buckets.path(f"{bucket}/model/transformer/config.json").write_text("{}")
    assert files_at(find_model(f"{bucket}/model")) == {"transformer/config.json": b"{}"}
    buckets.path(f"{bucket}/model/transformer/config.json").write_text("[]")
    assert files_at(find_model(f"{bucket}/model")) == {"transformer/config.json": b"{}"}
    another_machine()
    here = find_model(f"{bucket}/model")
    assert files_at(here) == {"transformer/config.json": b"[]"}
    written = (here / "transformer/config.json").stat().st_mtime_ns
    os.utime(here / "transformer/config.json", (1, 1))  # as an earlier release left it
    buckets.pull(here)
    assert (here / "transformer/config.json").stat().st_mtime_ns == written
    buckets.push_all()  # nothing of it
    assert files_in(f"{bucket}/model") == {"transformer/config.json": b"[]"}


def test_nothing_changes_under_another_process_that_reads_it(bucket, another_machine, monkeypatch):
    url = f"{bucket}/read"
    buckets.path(f"{url}/config.json").write_text("{}")
    buckets.reading(url)
    as_another_process = lambda: [monkeypatch.setattr(buckets, name, {}) for name in ("_copies", "_read")]
    as_another_process()
    here = buckets.reading(url)
    buckets.path(f"{url}/config.json").write_text("[]")
    as_another_process()
    with pytest.raises(UserError, match=f"^{url} has changed since another process of this machine has read it: wait"):
        buckets.reading(url)
    assert (here / "config.json").read_text() == "{}"


def test_requests_are_read_and_written_there(bucket, another_machine, capsys):
    data, file = f"{bucket}/data", io.BytesIO()
    Image.new("RGB", (32, 32)).save(file, "png")
    buckets.path(f"{data}/a.png").write_bytes(file.getvalue())
    buckets.path(f"{data}/requests.jsonl").write_text('{"image": "a.png", "prompt": "a hat", "task": "image_fill"}')
    convert = ["requests", "convert", "--to", f"{bucket}/converted", "--source"]
    assert main([*convert, f"{data}/requests.jsonl"]) == 0, capsys.readouterr().err
    assert files_in(f"{bucket}/converted").keys() == {OUTPUT_FILE, "requests.jsonl", "images/000000-image.png"}
    another_machine()
    image = buckets.reading(f"{data}/a.png")
    assert image.read_bytes() == file.getvalue()
    assert not image.with_name("requests.jsonl").exists()
    assert main([*convert, f"{bucket}/nothing"]) == 2
    assert f"there are no requests at {bucket}/nothing:" in capsys.readouterr().err
    assert main(["check", "--config", "flux_fill", "--workdir", f"{bucket}/check"]) == 2
    assert f"{bucket}/check is in a bucket" in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_one_sentence(bucket, another_machine):
    config = config_of("1,1,1")
    with pytest.raises(UserError, match=r"^gs://nowhere/run can't be read \(there is no such bucket\): check its name"):
        claim_workdir("gs://nowhere/run", config)
    with pytest.raises(UserError, match=r"^gs://nowhere/model can't be read"):
        find_model("gs://nowhere/model")
    with pytest.raises(UserError, match="write gs://BUCKET/PATH"):
        claim_workdir("gs://bucket/../other", config)


def test_a_bucket_that_may_not_be_written_is_one_sentence(bucket, another_machine, monkeypatch):
    class Forbidden:
        def find(self, *_, **__):
            return {}

        def pipe_file(self, *_):
            raise OSError("Forbidden: a text alone\nof gcsfs")

    monkeypatch.setattr(buckets, "_file_system", Forbidden)
    with pytest.raises(UserError, match=r"^the working directory .* can't be written \(Forbidden: a text alone\): "):
        claim_workdir(f"{bucket}/forbidden", config_of("1,1,1"))


def test_an_evaluations_preferences_are_there_before_others_read_them(bucket, another_machine, monkeypatch):
    url = f"{bucket}/evaluated"
    directory = buckets.local(url) / "preferences"
    seen = []

    def made(config, directory, *_, **__):
        directory.mkdir(parents=True)
        (directory / "pairs").write_text("made")

    monkeypatch.setattr(evaluate, "make_preferences", made)
    monkeypatch.setattr(evaluate, "read_pairs", lambda _: seen.append(files_in(url)))
    monkeypatch.setattr(evaluate, "judge_pairs", lambda *_, **__: [])
    monkeypatch.setattr(evaluate.accuracy, "judge_accuracy", lambda _: {})
    evaluate._judged(None, None, directory, RewardFeedback(), SimpleNamespace(mesh=None))
    assert seen == [{"preferences/pairs": b"made"}]


# ------------------------------------------------------------------------------------------- commands, all in a bucket


def upload(folder: Path, url: str) -> str:
    for name, content in files_at(folder).items():
        buckets.path(f"{url}/{name}").write_bytes(content)
    return url


def test_a_judge_learns_there_and_its_best_is_exported_by_another_machine(bucket, another_machine, tmp_path):
    made = []
    for number in range(24):
        task, images = TASKS[number % 4], [picture(2 * number + i, 64, 64) for i in range(2)]
        preference = Preference(dimensions_of(task)[0], number % 2, 1 - number % 2)
        made.append(Record(str(number), task, "a cat", tuple(map(Candidate, images)), pairs=(preference,)))
    write_records(tmp_path / "pairs", iter(made), "folder")
    tiny_judge.judge(depth=1, fullatt_block_indexes=(0,), num_hidden_layers=1).save_pretrained(tmp_path / "judge")
    changed = {
        "judge.data": (upload(tmp_path / "pairs", f"{bucket}/pairs"),),
        "judge.start": upload(tmp_path / "judge", f"{bucket}/judge"),
        "judge.image_step": 0,
        "judge.max_pixels": 0,
        "judge.held_out_share": 0.5,
        "judge.evaluate_every": 1,
        "judge.ema_decay": 0.0,
        "train.batch_size": 8,
        "train.checkpoint_minutes": 0,
    }
    config, url = load_config("judge_7b", changed), f"{bucket}/judge_run"
    training = judge_training(config, claim_workdir(url, config))
    assert training.example(0, TASKS[0])["first"].shape == (64, 64, 3)
    state = training.create(training.params.read())
    assert 0 <= training.evaluators[0].measure(state)["judge/held_out/accuracy"] <= 1
    buckets.push_all()
    assert {"balance.json", "best.json", "config.json", "best/step_00000000.json"} <= buckets.listed(url).keys()

    another_machine()
    training = judge_training(config, claim_workdir(url, config))
    training.export(state)
    buckets.push_all()
    before = files_in(f"{bucket}/judge")
    assert files_in(f"{url}/export").keys() >= before.keys() - {OUTPUT_FILE}


def test_a_run_is_exported_and_evaluated_there(bucket, another_machine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparison, "mesh_of_all", lambda: None)
    evaluating.make(tmp_path)
    run, data, base = (upload(tmp_path / name, f"{bucket}/own/{name}") for name in ("run", "requests", "base"))
    requests = load_config("flux_fill", {"data.source": data, "data.held_out": data, "data.resolution": 64})
    assert len(read_split(requests, claim_workdir(f"{bucket}/own/requests_run", config_of("1,1,1"))).held_out) == 5
    assert main(["export", "--workdir", run, "--out", f"{bucket}/own/exported"]) == 0
    another_machine()
    out = f"{bucket}/own/evaluation"
    command = ["evaluate", "--policy", f"{bucket}/own/exported", "--baseline", base, "--data", data, "--out", out]
    command += ["--dtype=float32", "--per_task=1"]
    command += [f"--config.{name}={value}" for name, value in evaluating.SETTINGS.items()]
    assert main(command) == 0, capsys.readouterr().err
    made = files_in(out)
    assert {"evaluation.json", "report.html", "images/policy/image_fill/000000.png"} <= made.keys()
    another_machine()
    assert main(command) == 0
    assert {name: content for name, content in files_in(out).items() if name.startswith("images/")} == {
        name: content for name, content in made.items() if name.startswith("images/")
    }


@pytest.mark.filterwarnings("ignore:.* reads .* tokens")  # the tiny encoders of some negative prompts
def test_candidates_are_collected_there(bucket, another_machine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(collect, "mesh_of_all", lambda: None)
    collecting.make(tmp_path, 2)
    data, base = (upload(tmp_path / name, f"{bucket}/asked/{name}") for name in ("requests", "base"))
    out = f"{bucket}/asked/candidates"
    command = [*collecting.ARGUMENTS, "--source", data, "--model", base, "--out", out, "--guided_share=0"]
    assert main([*command, "--candidates=2"]) == 0, capsys.readouterr().err
    found = files_in(out)
    assert COMPLETE in found
    assert len([name for name in found if name.endswith((".png", ".jpg", ".webp"))]) >= 2 * 2


# ---------------------------------------------------------------------------------------------------------- checkpoints


def state(step: int) -> dict:
    return {"w": jnp.arange(3000.0) * step, "b": jnp.full(7, step), "empty": jnp.zeros(0), "key": jax.random.key(step)}


SHAPES = jax.eval_shape(lambda: state(0))


def test_checkpoints_are_saved_pruned_swept_and_verified(bucket, tmp_path):
    url = f"{bucket}/checkpoints"
    checkpointer = Checkpointer(url, keep=2)
    assert checkpointer.restore_latest(SHAPES) is None
    for step in (1, 2, 3):
        assert checkpointer.save(step, state(step), {"next": step})
    checkpointer.wait()
    assert not checkpointer.save(3, state(3))
    assert checkpointer.steps() == [2, 3]
    assert {name.partition("/")[0] for name in buckets.listed(url)} == {
        *("step_00000002", "step_00000002.json", "step_00000003", "step_00000003.json")
    }
    for name, about in json.loads(buckets.path(f"{url}/step_00000003.json").read_text())["files"].items():
        assert buckets.listed(url)[f"step_00000003/{name}"] == about

    # A save and a deletion that were cut short.
    whole = buckets.listed(url)
    for name in ("step_00000004.unfinished", "step_00000004/state/d/0", "step_00000003.unfinished"):
        buckets.path(f"{url}/{name}").write_text("half")
    found, restored, data_state = Checkpointer(url).restore_latest(SHAPES)
    assert (found, data_state) == (3, {"next": 3})
    np.testing.assert_array_equal(restored["w"], state(3)["w"])
    assert jax.random.key_data(restored["key"]).tolist() == jax.random.key_data(state(3)["key"]).tolist()
    assert buckets.listed(url) == whole

    # The same files on a disk, and back.
    shutil.rmtree(tmp_path)
    for name, content in files_in(url).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert Checkpointer(tmp_path).restore_latest(SHAPES)[0] == 3

    [file] = [name for name in whole if name.startswith("step_00000003/state/ocdbt.process_0/d/")]
    content = buckets.path(f"{url}/{file}").read_bytes()
    buckets.path(f"{url}/{file}").write_bytes(bytes([content[0] ^ 1]) + content[1:])
    (tmp_path / file).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    for place in (url, tmp_path):
        checkpointer = Checkpointer(place, keep=2)
        with pytest.warns(CheckpointWarning, match="does not have the digest it was written with"):
            assert checkpointer.restore_latest(SHAPES)[0] == 2
        checkpointer.save(3, state(33), {"next": 3})
        checkpointer.wait()
        assert checkpointer.steps() == [2, 3]


# --------------------------------------------------------------------------------------------------------------- a run


def test_a_run_resumes_on_another_machine_as_if_undisturbed(bucket, another_machine, tmp_path):
    expected = small_training.run(tmp_path / "local", 12, checkpoint_every=4)
    url, config = f"{bucket}/run", config_of("1,1,1")

    def killed(step):
        def wrapped(state, batch):
            if int(state.step) == 6:
                raise RuntimeError("killed")
            return step(state, batch)

        return wrapped

    workdir = claim_workdir(url, config)
    assert not has_begun(workdir)
    with pytest.raises(RuntimeError, match="killed"):
        small_training.run(workdir, 12, checkpoint_every=4, wrap=killed)
    assert "checkpoints" not in {path.name for path in workdir.iterdir()}
    another_machine()
    assert has_begun(claim_workdir(url, config))
    with pytest.raises(UserError, match=f"^{url} holds a run of another configuration, differing in train.batch_size"):
        claim_workdir(url, config.replace({"train.batch_size": 8}))
    state = small_training.run(claim_workdir(url, config), 12, checkpoint_every=4)
    buckets.push_all()
    assert small_training.bytes_of(state) == small_training.bytes_of(expected)

    another_machine()
    workdir = claim_workdir(url, config)
    assert small_training.lines_of(workdir) == small_training.lines_of(tmp_path / "local")
    assert [name for name in buckets.listed(url) if name.startswith("tensorboard/")]
    assert Checkpointer(buckets.native(workdir / "checkpoints")).steps() == [4, 8, 12]
    assert int(small_training.run(workdir, 12).step) == 12
