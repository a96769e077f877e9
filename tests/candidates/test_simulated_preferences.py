"""Preference data: resumable, deterministic, and its labels are the truth where the annotator makes no errors."""

from pathlib import Path

import jax
import numpy as np
import pytest

from onereward_jax.candidates.simulated_preferences import make_preferences
from onereward_jax.config.load import load_config
from onereward_jax.data.preferences.dataset import MADE_OF, open_records
from onereward_jax.data.preferences.folder import Folder
from onereward_jax.errors import UserError
from onereward_jax.fill.pipeline import FillPipeline, sample_noise
from onereward_jax.flow.conditioning import latent_shape
from onereward_jax.images.reading import read_image
from onereward_jax.judge.pairs import label_row, read_pairs
from onereward_jax.proving_ground import ProvingGround, score
from onereward_jax.tasks import TASKS, dimensions_of
from onereward_jax.weights.save import save_component

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def config():
    return load_config("miniature/judge", {"preferences.annotator_noise": 0.0, "preferences.part_size": 4})


@pytest.fixture(scope="module")
def directory(config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("preferences")
    make_preferences(config, directory, "test", model=config.preferences.base, planted=4, base=2)
    return directory


def test_labels_are_the_truth(config, directory):
    pairs = read_pairs(directory)
    ground = ProvingGround("test", config.data.resolution, config.data.seed)
    assert {pair.task for pair in pairs} == set(TASKS)
    for pair in pairs:
        scene = ground.scene(pair.notes["scene"], pair.task)
        assert scene.sample.prompt == pair.prompt
        first, second = (score(scene, image) for image in pairs.images(pair))
        assert pair.labels
        for dimension, label in pair.labels.items():
            assert (first[dimension] - second[dimension]) * label >= config.preferences.annotator_margin
        row = label_row(pair.task, pair.prompt, pair.labels)
        for column, dimension in enumerate(dimensions_of(pair.task, pair.prompt)):
            assert row[column] == pair.labels.get(dimension, 0)


def test_planted_and_base_scenes_are_different(directory):
    names = [path.name for path in sorted(directory.glob("*.jsonl"))]
    assert names == [f"preferences-{source}-{n:05d}.jsonl" for source in ("base", "planted") for n in range(4)]
    scenes = {
        source: {(pair.task, pair.notes["scene"]) for pair in read_pairs(directory, source=source)}
        for source in ("base", "planted")
    }
    assert not scenes["planted"] & scenes["base"]
    assert {scene for _, scene in scenes["planted"]} <= set(range(4))
    assert {scene for _, scene in scenes["base"]} <= {4, 5}
    assert len(read_pairs(directory)) == sum(len(read_pairs(directory, source=source)) for source in scenes)


def test_records_are_whole(config, directory):
    ground = ProvingGround("test", config.data.resolution, config.data.seed)
    for record in open_records(directory):
        sample = ground.scene(record.notes["scene"], record.task).sample
        np.testing.assert_array_equal(read_image(record.image, "image"), sample.image)
        np.testing.assert_array_equal(read_image(record.mask, "mask")[..., 0], sample.mask * 255)
        assert len(record.candidates) == 4
        assert [(vote.dimension, vote.best, vote.worst) for vote in record.votes] == [
            (pair.dimension, pair.winner, pair.loser) for pair in record.pairs
        ]


def test_a_lost_part_is_made_again_alike(config, directory):
    lost, untouched = (directory / f"preferences-{name}.jsonl" for name in ("planted-00002", "base-00000"))
    before, stamp = list(open_records(directory)), untouched.stat().st_mtime_ns
    lost.unlink()
    with pytest.raises(UserError, match="incomplete preference data: run `onereward make-preferences`"):
        read_pairs(directory)
    make_preferences(config, directory, "test", model=config.preferences.base, planted=4, base=2)
    assert list(open_records(directory)) == before
    assert untouched.stat().st_mtime_ns == stamp


def test_parts_of_other_settings_are_refused_or_made_again(config, tmp_path):
    make = lambda tasks, **options: make_preferences(
        config, tmp_path, "test", model=config.preferences.base, planted=4, base=0, tasks=tasks, **options
    )
    make(TASKS[1:])
    assert {record.task for record in open_records(tmp_path)} == set(TASKS[1:])
    with pytest.raises(UserError, match=r"made_of\.json"):
        make(TASKS[2:])
    assert len(open_records(tmp_path)) == 12
    make(TASKS[2:], replace=True)
    assert len(open_records(tmp_path)) == 8


def test_policies_make_candidates_too(config, tmp_path):
    """And what a note says of a candidate is enough to make it again."""
    pipeline = FillPipeline.from_pretrained(config.preferences.base, dtype="float32")
    policy = jax.tree.map(lambda x: 0.5 * x, pipeline.params["transformer"])
    save_component(tmp_path / "policy", "transformer", pipeline.transformer, policy)
    config = config.replace({"preferences.policies": (str(tmp_path / "policy"),)})
    make_preferences(config, tmp_path / "pairs", "train", model=config.preferences.base, planted=0, base=4)
    ground = ProvingGround("train", config.data.resolution, config.data.seed)
    made_by = []
    for part in sorted((tmp_path / "pairs").glob("*.jsonl")):
        records = list(Folder(tmp_path / "pairs", [part]))
        samples = [ground.scene(record.notes["scene"], record.task).sample for record in records]
        for number, candidate in enumerate(records[0].candidates):
            note = dict(candidate.sampling)
            made_by.append(note.pop("policy", ""))
            noise = sample_noise(
                jax.random.key(note.pop("seed")), range(len(records)), latent_shape(pipeline.vae, 64, 64)
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
            made = np.stack([read_image(record.candidates[number].image, record.id) for record in records])
            np.testing.assert_allclose(made / 255, pictures, atol=1 / 255)
    assert set(made_by) == {"", str(tmp_path / "policy")}


def test_rounds_are_read_together(directory, config, tmp_path):
    make_preferences(config, tmp_path, "test", model=config.preferences.base, planted=2, base=0)
    first, second, both = read_pairs(directory), read_pairs(tmp_path), read_pairs(directory, tmp_path)
    assert list(both)[: len(first)] == list(first)
    assert [pair._replace(part=0) for pair in both[len(first) :]] == list(second)
    assert {pair.part for pair in both[len(first) :]} == {1}


def test_no_preferences(directory, tmp_path):
    with pytest.raises(UserError, match="make-preferences"):
        read_pairs(tmp_path)
    with pytest.raises(UserError):
        read_pairs(directory, source="other")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"preferences": 3}', "[" * 10_000])
def test_a_damaged_record_of_settings_is_one_sentence(config, tmp_path, content):
    (tmp_path / MADE_OF).write_text(content)
    with pytest.raises(UserError, match="choose another directory, or delete"):
        make_preferences(config, tmp_path, "train", model=config.preferences.base, planted=1, base=0)
