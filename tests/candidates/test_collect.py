"""Candidates are made once each, whatever happens, and their records say how."""

import errno
import fcntl
import functools
import os
import shutil
import signal
import time
from hashlib import sha256

import jax
import numpy as np
import pytest

from onereward_jax.candidates import collect as module
from onereward_jax.cli import main as cli
from onereward_jax.data.preferences.dataset import COLLECTION, COMPLETE, open_candidates
from onereward_jax.fill import denoising, prompts
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.images.reading import read_image
from tests.support import tiny_fill
from tests.support.collecting import ARGUMENTS, SIDE, Processes, contents, make

TWO = lambda root: (f"--model={root / 'second'}", "--guided_share=0")  # arguments


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("collect")
    make(root)
    shutil.copytree(root / "base", root / "second")
    return root


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """One device, and text encoders that are compiled once for all models: here they are alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "mesh_of_all", lambda: None)
        patch.setattr(prompts, "encoding", functools.cache(prompts.encoding))
        yield


def arguments(root, out, *more):
    return [*ARGUMENTS, f"--source={root / 'requests'}", f"--model={root / 'base'}", f"--out={out}", *more]


@pytest.mark.filterwarnings("ignore:.* reads .* tokens")  # the tiny encoders of some negative prompts
def test_a_size_is_one_program_and_one_with_true_guidance(root, tmp_path):
    """Whatever the settings are; and what a record says of a candidate is enough to make it again."""
    denoising.fill.clear_cache()
    assert cli.main(arguments(root, tmp_path, "--seed=5")) == 0
    assert denoising.fill._cache_size() == 2
    records = list(open_candidates(tmp_path))
    assert len({candidate.sampling["num_steps"] for record in records for candidate in record.candidates}) >= 4
    pipeline = FillPipeline.from_pretrained(root / "base", dtype="float32")
    for record in records[:2]:
        image, mask = read_image(record.image, "image"), read_image(record.mask, "mask")[..., 0] // 255
        assert len(record.candidates) == 4
        for candidate in record.candidates:
            settings = dict(candidate.sampling)
            assert settings.pop("model") == str(root / "base")
            noise = sample_noise(jax.random.key(settings.pop("seed")), [0], latent_shape(pipeline.vae, SIDE, SIDE))
            made = pipeline.generate(
                np.stack([image] * 2),
                np.stack([mask] * 2),
                [record.prompt] * 2,
                np.concatenate([noise] * 2) * settings.pop("noise_strength"),
                max_sequence_length=tiny_fill.T5_LENGTH,
                **{name: [value] * 2 for name, value in settings.items()},
            )
            np.testing.assert_allclose(made[0], read_image(candidate.image, "candidate") / 255, atol=1 / 255)
    assert denoising.fill._cache_size() == 2


@pytest.fixture(scope="module")
def uninterrupted(root):
    """What two models made, undisturbed."""
    assert cli.main(arguments(root, root / "whole", *TWO(root))) == 0
    return contents(root / "whole")


@pytest.fixture
def made(monkeypatch):
    """[(model, number of candidates)] of every part that is made, in their order."""
    found, images = [], module._Maker.images

    def counted(maker, drawn, *more):
        found.append((os.path.basename(maker.name), len(drawn)))
        return images(maker, drawn, *more)

    monkeypatch.setattr(module._Maker, "images", counted)
    return found


def test_candidates_of_two_models(root, uninterrupted):
    records = list(open_candidates(root / "whole"))
    assert [record.id for record in records] == ["r0", "r1", "r2", "r3"]
    assert not any(record.votes or record.pairs for record in records)
    images = [sha256((root / "requests" / f"{n}.png").read_bytes()).hexdigest() for n in range(4)]
    assert [record.notes for record in records] == [
        {"source_image": image, "photographer": n} for n, image in enumerate(images)
    ]
    for record in records:
        models = [candidate.sampling["model"] for candidate in record.candidates]
        assert models.count(str(root / "base")) == models.count(str(root / "second")) == 2


def test_a_killed_command_loses_a_part_at_most(root, uninterrupted, made, tmp_path):
    """Killed while it writes the images of the last part, it ends with what one makes that was never killed."""
    out = tmp_path / "out"
    with Processes() as processes:
        process = processes.start(arguments(root, out, *TWO(root)))
        deadline = time.monotonic() + 300
        while not (out / "images/candidates-00001/000000-1.png").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert processes.ended() == -signal.SIGKILL
    assert not (out / COMPLETE).exists()
    assert {path.name for path in (out / ".work" / "0").iterdir()} <= {"00001.zip"}  # the other part is written
    parts = {path: path.stat().st_mtime_ns for path in out.glob("candidates-*.jsonl")}
    assert cli.main(arguments(root, out, *TWO(root))) == 0
    assert made in ([("second", 4)], [])  # or the kill came just after
    assert contents(out) == uninterrupted
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in parts.items())


class Killed(BaseException):
    """Nothing in the command handles it."""


def test_what_the_first_model_made_is_not_made_again(root, uninterrupted, made, tmp_path, monkeypatch):
    kept, write = [], module.write_bytes

    def killed(path, content):
        if kept:
            raise Killed
        kept.append(path.name)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_bytes", killed)
        with pytest.raises(Killed):
            cli.main(arguments(root, tmp_path / "out", *TWO(root)))
    assert kept == ["00000.zip"]
    made.clear()
    assert cli.main(arguments(root, tmp_path / "out", *TWO(root))) == 0
    assert made == [("base", 4), ("second", 4), ("second", 4)]
    assert contents(tmp_path / "out") == uninterrupted


def test_models_answer_with_the_same_settings(root, tmp_path):
    assert cli.main(arguments(root, tmp_path, *TWO(root), "--same_settings", "--keep_outside")) == 0
    for record in open_candidates(tmp_path):
        first, second = (dict(candidate.sampling) for candidate in record.candidates)
        assert [first.pop("model"), second.pop("model")] == [str(root / "base"), str(root / "second")]
        assert first == second
        assert record.candidates[0].image == record.candidates[1].image  # the same weights
        source, mask = read_image(record.image, "image"), read_image(record.mask, "mask")
        made = read_image(record.candidates[0].image, "candidate")
        np.testing.assert_array_equal(made[mask == 0], source[mask == 0])
        assert (made[mask > 0] != source[mask > 0]).any()


def test_a_full_disk_and_a_damaged_request(root, tmp_path, monkeypatch, capsys):
    """Nothing half-written is taken for whole; the same command resumes, without the damaged one."""
    shutil.copytree(root / "requests", tmp_path / "requests")
    (tmp_path / "requests" / "2.png").write_bytes(b"no image")
    command = [*arguments(tmp_path, tmp_path / "out", "--guided_share=0"), f"--model={root / 'base'}"]
    command.remove(f"--model={tmp_path / 'base'}")
    assert cli.main(command) == 2  # one of four is too many
    assert "2.png" in capsys.readouterr().err
    command.append("--bad_share=0.5")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_folder", full)
        assert cli.main(command) == 75
    assert not (tmp_path / "out" / COMPLETE).exists()
    assert cli.main(command) == 0
    assert [record.id for record in open_candidates(tmp_path / "out")] == ["r0", "r1", "r3"]
    files = {str(path) for path in (tmp_path / "out").rglob("*.png")}
    assert len(files) == 3 * (2 + 4)
    made = contents(tmp_path / "out")
    assert cli.main(command) == 0  # nothing is left to do
    assert contents(tmp_path / "out") == made


def test_a_request_that_can_not_be_read_any_more(root, tmp_path, monkeypatch):
    asked = _asked_of(root, lost={1})
    models = {"tiny": module.Policy.at(root / "base")}
    ranges, length = module.Ranges(1, 2, 0.0, 2.0), tiny_fill.T5_LENGTH
    how = module.Collecting(ranges, batch_size=2, dtype="float32", max_sequence_length=length)
    with pytest.raises(module.UserError, match="1 of 3"):
        module.collect(asked, models, how, tmp_path)
    assert not (tmp_path / COMPLETE).exists()
    assert module.collect(asked, models, module.dataclasses.replace(how, bad_share=0.5), tmp_path) == 2
    assert [record.id for record in open_candidates(tmp_path)] == ["r0", "r2"]


def _asked_of(root, lost):
    """Three requests, of which some can't be read when it is their turn."""

    def sample(number):
        if number in lost:
            raise module.UserError("it is damaged")
        image = np.full((SIDE, SIDE, 3), number, np.uint8)
        return module.Sample(image, np.eye(SIDE, dtype=np.uint8), "a red circle", "image_fill", f"r{number}")

    items = [module.Item(f"r{n}", (SIDE, SIDE), lambda n=n: sample(n)) for n in range(3)]
    return module.Asked(items, {}, "here")


def test_two_commands_in_one_directory(root, tmp_path, capsys):
    with open(tmp_path / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cli.main(arguments(root, tmp_path)) == 2
    error = capsys.readouterr().err
    assert "another --out" in error
    assert error.count("\n") == 1


def test_another_collection_in_the_directory_is_refused(root, uninterrupted, capsys):
    for more in (["--seed=1"], ["--candidates=3"], []):
        assert cli.main(arguments(root, root / "whole", *more)) == 2
        assert "whole" in capsys.readouterr().err
    assert contents(root / "whole") == uninterrupted


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model=missing"], "missing"),
        (["--source=proving_ground", "--count=0"], "--source"),
        (["--min_steps=0"], "--min_steps"),
        (["--min_steps=9"], "max_steps"),
        (["--same_settings"], "more candidates, or models"),
        (["--same_settings", "--candidates=3"], "--same_settings"),
        (["--candidates=1"], "--candidates"),
        (["--source=nowhere"], "nowhere"),
        (["--bucket_step=24"], "bucket_step"),
    ],
)
def test_wrong_arguments_are_one_sentence(root, tmp_path, capsys, more, words):
    assert cli.main(arguments(root, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1, error
    assert not (tmp_path / "out" / COLLECTION).exists()


def test_a_directory_with_other_files_is_left_alone(root, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("dear")
    assert cli.main(arguments(root, tmp_path)) == 2
    assert "thesis.tex" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"thesis.tex", ".lock"}
