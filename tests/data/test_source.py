"""A source of one's own is enough for training, evaluation's images and the reference cache."""

import dataclasses
import functools
import json

import numpy as np
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source, ground_truth_of, samples_from
from onereward_jax.errors import UserError
from onereward_jax.evaluation.generation import generate_images
from onereward_jax.fill.pipeline import FillPipeline
from onereward_jax.proving_ground import ProvingGround, score
from onereward_jax.proving_ground.source import open_source, proving_ground_of
from onereward_jax.runs.reward_feedback import train
from onereward_jax.weights.load import StoredParams
from onereward_jax.weights.names import clip, flux, t5
from tests.support import tiny_fill, tiny_judge
from tests.support.chain import FEEDBACK, STEPS


class Noise(Source):
    """Noise with a hole in its middle."""

    tasks, sizes, prompts = ("image_fill",), ((32, 32),), ("a small red circle",)

    def sample(self, index, task):
        image = np.random.default_rng(index).integers(0, 256, (32, 32, 3), np.uint8)
        mask = np.pad(np.ones((16, 16), np.uint8), 8)
        return Sample(image, mask, "a small red circle", task, str(index), target=image)

    def fingerprint(self):
        return {"noise": 1}


class Few(Noise):
    def __len__(self):
        return 3


@pytest.fixture
def config(tmp_path):
    tiny_fill.pipeline(tmp_path / "tokenizers").save_pretrained(tmp_path / "base")
    tiny_judge.judge(depth=1, fullatt_block_indexes=(0,), num_hidden_layers=1).save_pretrained(tmp_path / "judge")
    settings = {"model.base": tmp_path / "base", "model.judge": tmp_path / "judge", "train.batch_size": 8}
    settings |= {"data.num_conditions": 16, "rl.reference_cache": tmp_path / "references", "data.resolution": 32}
    settings |= {"max_sequence_length": tiny_fill.T5_LENGTH, "question_length": 48, "evaluation.batch_size": 2}
    weights = {f"data.task_weights.{task}": 0 for task in ("image_extend", "object_removal", "text_rendering")}
    return load_config("fixed", {k: str(v) for k, v in (STEPS | FEEDBACK | settings | weights).items()})


def test_a_toy_source_is_trained_on_cached_and_answered(config, tmp_path):
    train(config, tmp_path / "run", source=Noise())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["perf/references_added"] for line in lines] == [8, 8]
    (cache,) = (tmp_path / "references").iterdir()
    assert json.loads((cache / "made_from.json").read_text())["noise"] == 1
    pipeline = FillPipeline.from_pretrained(config.model.base, dtype="float32")
    images = generate_images(pipeline, None, samples_from(Noise(), "image_fill", 0, 3), config)
    assert (images.shape, images.dtype) == ((3, 32, 32, 3), np.uint8)


def test_a_policy_is_compared_with_the_base_while_it_is_trained(config, tmp_path, monkeypatch):
    """By the judge, without a ground truth; a run that goes on reads neither text encoders nor the transformer."""
    run = functools.partial(train, workdir=tmp_path / "run", source=Noise(), held_out=Few())
    config = config.replace({"evaluation.every": 1, "rl.reference_cache": "", "data.num_conditions": 0})
    run(config)

    def read(stored, *arguments):
        assert stored._table not in (clip.TABLE, t5.TABLE, flux.TABLE), "read again"
        return of_files(stored, *arguments)

    of_files = StoredParams.read
    monkeypatch.setattr(StoredParams, "read", read)
    run(config.replace({"train.num_steps": 3}))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert 0 < line["evaluation/image_fill/preference"] < 1
        assert 0 < line["evaluation/image_fill/drift"] < 1
    assert lines[0]["evaluation/image_fill/drift"] != lines[2]["evaluation/image_fill/drift"]
    grids = sorted((tmp_path / "run" / "samples").iterdir())
    assert [grid.name for grid in grids] == [f"step_{step:08d}.png" for step in (1, 2, 3)]


def test_a_source_says_how_much_it_has_and_lacks():
    assert [sample.id for sample in samples_from(Few(), "image_fill", 1, 9)] == ["1", "2"]
    with pytest.raises(UserError, match="`onereward evaluate` needs a ground truth"):
        ground_truth_of(Noise(), "`onereward evaluate`")
    with pytest.raises(UserError, match="needs scenes of the proving ground"):
        proving_ground_of(Noise(), "judge.synthetic_share")
    with pytest.raises(UserError, match="no targets"):
        dataclasses.replace(Noise().sample(0, "image_fill"), target=None).arrays("image", "target")


def test_the_proving_ground_is_a_source_with_a_ground_truth():
    ground = ProvingGround("test", target_flaws=1.0)
    samples = samples_from(ground, "object_removal", 4, 2)
    scenes = [ground.scene(index, "object_removal") for index in (4, 5)]
    for sample, scene in zip(samples, scenes, strict=True):
        np.testing.assert_array_equal(sample.image, scene.sample.image)
        np.testing.assert_array_equal(sample.target, scene.target)
        assert scene.flaw
    scores = ground_truth_of(ground, "this").score_images(samples, [[scene.target] for scene in scenes])
    assert [row[0] for row in scores] == [score(scene, scene.target) for scene in scenes]
    with pytest.raises(ValueError, match="is none of this proving ground's"):
        ground.scene_of(Noise().sample(0, "image_fill"))


def test_one_function_opens_what_is_configured():
    config = load_config("quick", {"data.seed": "7"})
    (sample,) = samples_from(open_source(config, "test"), "image_fill", 3, 1)
    assert sample.id == "test/7/image_fill/3"
