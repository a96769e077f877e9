"""Preference data: resumable, deterministic, and its labels are the truth where the annotator makes no errors."""

import json

import jax
import numpy as np
import pytest

from configs import tiny
from onereward_jax.data.proving_ground import ProvingGround, score
from onereward_jax.errors import UserError
from onereward_jax.flow.pipeline import FillPipeline, latent_shape, sample_noise
from onereward_jax.judge.preferences import label_row, make_preferences, read_pairs
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.weights.export import save_component


@pytest.fixture(scope="module")
def config():
    config = tiny.get_config("judge")
    config.preferences.annotator_noise = 0.0
    config.preferences.part_size = 4
    return config


@pytest.fixture(scope="module")
def directory(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("preferences")
    make_preferences(config, directory, "test", model=config.preferences.base, planted=4, base=2)
    return directory


def test_labels_are_the_truth(config, directory):
    candidates, pairs = read_pairs(directory)
    ground = ProvingGround("test", config.data.resolution, config.data.seed)
    assert {pair.task for pair in pairs} == set(TASKS)
    for pair in pairs:
        scene = ground.scene(pair.scene, pair.task)
        assert scene.sample.prompt == pair.prompt
        first, second = (score(scene, candidates[pair.part][pair.row, i]) for i in (pair.first, pair.second))
        assert pair.labels
        for dimension, label in pair.labels.items():
            assert (first[dimension] - second[dimension]) * label >= config.preferences.annotator_margin
        row = label_row(pair.task, pair.prompt, pair.labels)
        for column, dimension in enumerate(dimensions_of(pair.task, pair.prompt)):
            assert row[column] == pair.labels.get(dimension, 0)


def test_planted_and_base_scenes_are_different(directory):
    names = [path.name for path in sorted(directory.glob("*.npz"))]
    assert names == [f"{source}-{number:05d}.npz" for source in ("base", "planted") for number in range(4)]
    _, pairs = read_pairs(directory)
    planted = {(pair.task, pair.scene) for pair in pairs if pair.part >= 4}
    base = {(pair.task, pair.scene) for pair in pairs if pair.part < 4}
    assert not planted & base
    assert {scene for _, scene in planted} <= set(range(4))
    assert {scene for _, scene in base} <= {4, 5}


def test_a_lost_part_is_made_again_alike(config, directory):
    lost = directory / "planted-00002.npz"
    untouched = directory / "base-00000.npz"
    before, stamp = np.load(lost)["candidates"], untouched.stat().st_mtime_ns
    lines = lost.with_suffix(".jsonl").read_text()
    lost.unlink()
    make_preferences(config, directory, "test", model=config.preferences.base, planted=4, base=2)
    np.testing.assert_array_equal(np.load(lost)["candidates"], before)
    assert lost.with_suffix(".jsonl").read_text() == lines
    assert untouched.stat().st_mtime_ns == stamp


def test_parts_of_other_settings_are_refused_or_made_again(config, tmp_path):
    make = lambda base, **options: make_preferences(  # noqa: E731
        config, tmp_path, "test", model=config.preferences.base, planted=0, base=base, **options
    )
    make(4)
    with pytest.raises(UserError, match=r"other settings or models, see .*made_of\.json"):
        make(2)
    assert [len(part) for part in read_pairs(tmp_path)[0]] == [4, 4, 4, 4]
    make(2, replace=True)
    candidates, _ = read_pairs(tmp_path)
    assert [len(part) for part in candidates] == [2, 2, 2, 2]


def test_policies_make_candidates_too(config, tmp_path):
    """And what a note says of a candidate is enough to make it again."""
    pipeline = FillPipeline.from_pretrained(config.preferences.base, dtype="float32")
    policy = jax.tree.map(lambda x: 0.5 * x, pipeline.params["transformer"])
    save_component(tmp_path / "policy", "transformer", pipeline.transformer, policy)
    config = config.copy_and_resolve_references()
    config.preferences.policies = (str(tmp_path / "policy"),)
    make_preferences(config, tmp_path / "pairs", "train", model=config.preferences.base, planted=0, base=4)
    ground = ProvingGround("train", config.data.resolution, config.data.seed)
    made_by = []
    for part in sorted((tmp_path / "pairs").glob("*.npz")):
        lines = [json.loads(line) for line in part.with_suffix(".jsonl").read_text().splitlines()]
        samples = [ground.scene(line["index"], line["task"]).sample for line in lines]
        for number, note in enumerate(lines[0]["candidates"]):
            made_by.append(note.pop("policy", ""))
            noise = sample_noise(
                jax.random.key(note.pop("seed")), range(len(lines)), latent_shape(pipeline.vae, 64, 64)
            )
            pictures = pipeline.generate(
                np.stack([sample.image for sample in samples]),
                np.stack([sample.mask for sample in samples]),
                [sample.prompt for sample in samples],
                noise * note.pop("noise_strength"),
                transformer_params=policy if made_by[-1] else None,
                max_sequence_length=config.max_sequence_length,
                **note,
            )
            np.testing.assert_allclose(np.load(part)["candidates"][:, number] / 255, pictures, atol=1 / 255)
    assert set(made_by) == {"", str(tmp_path / "policy")}


def test_rounds_are_read_together(directory, config, tmp_path):
    make_preferences(config, tmp_path, "test", model=config.preferences.base, planted=2, base=0)
    (first, first_pairs), (second, second_pairs) = read_pairs(directory), read_pairs(tmp_path)
    both, pairs = read_pairs(directory, tmp_path)
    assert len(both) == len(first) + len(second)
    assert pairs[: len(first_pairs)] == first_pairs
    assert [pair._replace(part=pair.part - len(first)) for pair in pairs[len(first_pairs) :]] == second_pairs


def test_no_preferences(tmp_path):
    with pytest.raises(UserError, match="make-preferences"):
        read_pairs(tmp_path)
