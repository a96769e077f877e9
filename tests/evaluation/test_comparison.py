"""An evaluation keeps what it has: killed anywhere, it goes on; with other inputs, it is refused."""

import functools
import shutil
import types

import numpy as np
import pytest

from onereward_jax.config.load import load_config
from onereward_jax.data.sample import Sample
from onereward_jax.data.source import Source
from onereward_jax.errors import UserError
from onereward_jax.evaluation import comparison as module
from onereward_jax.evaluation import during_training
from onereward_jax.evaluation.alarms import in_a_row
from onereward_jax.evaluation.comparison import Comparison
from onereward_jax.evaluation.meters.outside import OUTSIDE
from onereward_jax.fill.policies import Policy, policies_at
from onereward_jax.images.reading import read_image
from onereward_jax.judge.vision import ImageSettings


class TwoSizes(Source):
    """Seven requests of two tasks, in two sizes."""

    tasks = ("image_fill", "object_removal")
    sizes = ((16, 24), (24, 16))

    def sample(self, index, task):
        shape = self.sizes[index % 2]
        image = np.random.default_rng(index).integers(0, 256, (*shape, 3), np.uint8)
        mask = np.zeros(shape, np.uint8)
        mask[4:12, 4:12] = 1
        return Sample(image, mask, "a cat", task, f"{task}/{index}")

    def fingerprint(self):
        return {"two": "sizes"}

    def __len__(self):
        return 4

    def count(self, task):
        return 4 if task == "image_fill" else 3


class Paint(types.SimpleNamespace):
    """A policy that paints the mask in one colour, and counts the images that it made."""

    def __init__(self, colour):
        super().__init__(colour=colour, made=0, dies_after=100)

    def fingerprint(self):
        return str(self.colour)

    def open(self, dtype, mesh):
        return types.SimpleNamespace(prompts=types.SimpleNamespace(fingerprint="", encode_ahead=lambda *_: None))

    def read(self, pipeline, dtype, mesh):
        return self


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """A function that makes the comparison, with a batch of two."""

    def paint(pipeline, policy, samples, numbers, config):
        if policy.made >= policy.dies_after:
            raise KeyboardInterrupt
        policy.made += len({sample.id for sample in samples})
        return np.stack([np.where(s.mask[..., None] == 1, np.uint8(policy.colour), s.image) for s in samples])

    monkeypatch.setattr(module, "generate_batch", paint)
    monkeypatch.setattr(module, "mesh_of_all", lambda: None)
    config = load_config("quick", {"evaluation.batch_size": 2})
    return functools.partial(Comparison, TwoSizes(), config, tmp_path)


def test_images_are_made_once(compare):
    policy = Paint(200)
    policy.dies_after = 3
    with pytest.raises(KeyboardInterrupt):
        compare().answer("policy", policy)
    assert policy.made == 4
    policy.dies_after = 100
    compare().answer("policy", policy)
    assert policy.made == 7
    comparison = compare()
    comparison.answer("policy", policy)
    assert policy.made == 7
    for item, image in zip(comparison.items, comparison.images("policy", comparison.items), strict=True):
        sample = comparison.sample(item)
        assert (image[sample.mask == 1] == 200).all()
        np.testing.assert_array_equal(image[sample.mask == 0], sample.image[sample.mask == 0])
    (comparison.directory / "images/policy" / comparison.items[0].file).unlink()
    compare().answer("policy", policy)
    assert policy.made == 9  # the batch of the image that is gone


def test_other_inputs_are_refused_or_replaced(compare):
    compare().answer("policy", Paint(200))
    with pytest.raises(
        UserError, match=r"images/policy holds results of other inputs, differing in policy \('200' there"
    ):
        compare().answer("policy", Paint(100))
    comparison = compare(replace=True)
    comparison.answer("policy", Paint(100))
    assert (read_image(comparison.directory / "images/policy" / comparison.items[0].file)[6, 6] == 100).all()


def test_a_judge_and_a_meter_are_asked_once(compare, monkeypatch):
    comparison, asked = compare(), []
    comparison.answer("base", Paint(10))
    comparison.answer("policy", Paint(250))

    def views(judge, texts, first, second, size, length, ask):
        asked.append(len(texts))
        assert len(asked) < 3 or judge == "whole"
        p = [{"structure": float(image[6, 6, 0]) / 255} for image in first]
        return p, [{"structure": float(image[6, 6, 0]) / 255} for image in second]

    monkeypatch.setattr(module, "judge_views", views)
    monkeypatch.setattr(module, "compiled_ask", lambda judge, mesh: None)
    with pytest.raises(AssertionError):
        comparison.ask("j", "dies", "1", 32)
    answers = comparison.ask("j", "whole", "1", 32)
    assert asked == [2, 2, 2, 2, 1]  # the third died, and was asked again
    assert [answer.id for answer in answers] == [item.id for item in comparison.items]
    assert all(answer.verdict("structure") == "good" for answer in answers)
    first, second = (comparison.measure("policy", OUTSIDE) for _ in range(2))
    assert first == second
    assert {task: len(rows) for task, rows in first.items()} == {"image_fill": 4, "object_removal": 3}
    assert all(row["psnr_outside"] == 100 and row["ssim_outside"] == 1 for row in first["image_fill"])
    with pytest.raises(UserError, match="differing in judge"):
        comparison.ask("j", "another", "2", 32)


@pytest.fixture
def with_base(monkeypatch, tmp_path):
    """A function that begins a comparison with the base while training, whose images are of one colour everywhere."""

    def paint(pipeline, colour, samples, config, *_, **__):
        return np.stack([np.full_like(sample.image, colour) for sample in samples])

    monkeypatch.setattr(during_training, "generate_images", paint)
    monkeypatch.setattr(during_training, "fingerprint", str)
    monkeypatch.setattr(during_training, "compiled_ask", lambda judge, mesh: None)
    judge = types.SimpleNamespace(settings=ImageSettings(patch_size=4, min_pixels=1))

    def begin(read_base, source=None, **settings):
        config = load_config("quick", settings)
        pipeline = types.SimpleNamespace(mesh=None, vae=types.SimpleNamespace(block_out_channels=(8, 8, 8)))
        source = source or TwoSizes()
        return during_training.ComparisonWithBase(config, pipeline, judge, source, read_base, tmp_path)

    return begin


def test_base_images_are_those_of_the_same_inputs(with_base):
    read = []

    class Grown(TwoSizes):
        def fingerprint(self):
            return {"two": ("sizes", "grown")}

    begin = functools.partial(with_base, lambda: read.append(1) or 10)
    for source, settings, times in (
        (None, {}, 1),
        (None, {}, 1),
        (None, {"max_sequence_length": 8}, 2),
        (Grown(), {"max_sequence_length": 8}, 3),
        (Grown(), {"max_sequence_length": 8}, 3),
    ):
        begin(source=source, **settings)
        assert len(read) == times


def test_with_keep_outside_the_requests_own_pixels_are_judged(with_base, compare, monkeypatch):
    """While training and after it; what a policy changed there is measured all the same."""
    seen = []

    def views(judge, texts, first, second, *_):
        seen.extend((first, second))
        p = [{"structure": 0.5} for _ in texts]
        return p, p

    for of in (during_training, module):
        monkeypatch.setattr(of, "judge_views", views)
    monkeypatch.setattr(module, "compiled_ask", lambda judge, mesh: None)
    monkeypatch.setattr(
        module, "generate_batch", lambda _, policy, samples, *__: np.stack([0 * s.image + 99 for s in samples])
    )
    grids = []
    monkeypatch.setattr(during_training, "image_grid", lambda rows, *_: grids.append(rows[0]) or rows[0][0])
    for kept in (False, True):
        found = with_base(lambda: 10, **{"rl.keep_outside": kept}).measure(200, 1)
        assert found["evaluation/image_fill/drift"] > 0.1
        assert (found["evaluation/image_fill/drift_gain"] == 0) == kept
        comparison = compare()
        comparison.config = load_config("quick", {"evaluation.batch_size": 2, "rl.keep_outside": kept})
        for name in ("base", "policy"):
            comparison.answer(name, Paint(0))
        comparison.ask(f"kept_{kept}", None, "1", 32)
        source = TwoSizes()
        own = {source.sample(index, "image_fill").image[0, 0].tobytes() for index in range(4)}
        assert all((image[0, 0].tobytes() in own) == kept for batch in (*seen, grids[-1][1:]) for image in batch)
        assert {int(image[6, 6, 0]) for batch in seen for image in batch} == {10, 200, 99}
        seen.clear()


def test_what_is_measured_of_hacking(with_base, monkeypatch):
    """A policy that paints all grey, which its judge likes as long as nobody touches the pixels."""

    def views(judge, texts, first, second, *_):
        p = [
            {"structure": 0.9, "aesthetics": 0.8} if (image == image[0, 0]).all() else {"structure": 0.5}
            for image in first
        ]
        return p, [{dimension: 1 - x for dimension, x in of.items()} for of in p]

    def paint(pipeline, colour, samples, config, candidate=0, **_):
        # Of the base, the answers to other noise differ; of the policy, none does.
        shade = colour + 40 * candidate if colour == 10 else colour
        return np.stack([np.full_like(sample.image, shade) for sample in samples])

    monkeypatch.setattr(during_training, "judge_views", views)
    monkeypatch.setattr(during_training, "generate_images", paint)
    settings = {"alarms.seeds": 2, "alarms.reencodings": "('jpeg', 'shift', 'noise')"}
    found = with_base(lambda: 10, **settings).measure(200, 1)
    for task in TwoSizes.tasks:
        of = {name.removeprefix(f"evaluation/{task}/"): x for name, x in found.items() if task in name}
        assert set(of) == {
            *("preference", "deviation", "sure", "lost_to_jpeg", "lost_to_shift", "lost_to_noise"),
            *("saturation", "contrast", "drift", "drift_gain", "diversity"),
        }  # nothing varies, so that nothing has a period
        assert of["preference"] == pytest.approx(0.85)
        assert of["deviation"] == pytest.approx(0.05)
        assert (of["lost_to_shift"], of["diversity"]) == (pytest.approx(0), 0)
        assert of["lost_to_noise"] == pytest.approx(0.35)
    assert found["evaluation/gain"] == pytest.approx(0.35)
    assert in_a_row([found | {"step": 1}], load_config("quick").alarms)["lost_to_noise"] == 1


def test_what_a_path_holds(tmp_path):
    (tmp_path / "run/export/policy").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text('{"model.base": "owner/base"}')
    (tmp_path / "run/export/policy/config.json").write_text("{}")
    exported = str(tmp_path / "run/export/policy")
    assert Policy.at(tmp_path / "run") == Policy.at(exported) == Policy("owner/base", exported)
    (tmp_path / "run/export/policy/config.json").unlink()
    (tmp_path / "run/export/policy/pytorch_lora_weights.safetensors").touch()
    assert Policy.at(exported) == Policy("owner/base", adapter=exported)
    assert Policy.at(exported, "other") == Policy("owner/base", adapter=exported)  # its run's, always
    found = tmp_path / "adapter"
    found.mkdir()
    (found / "pytorch_lora_weights.safetensors").touch()
    assert Policy.at(found, "other") == Policy("other", adapter=str(found))
    run, added = Policy.at(exported), Policy("owner/base", adapter=str(found))
    assert policies_at(tmp_path / "run", None) == (run, Policy("owner/base"))
    assert policies_at(tmp_path / "run", "owner/other") == (run, Policy("owner/other"))
    assert policies_at(found, tmp_path / "run") == (added, run)  # the baseline's own base, not the run's directory
    assert policies_at(exported, found) == (run, added)
    shutil.copytree(tmp_path / "run", tmp_path / "second")
    (tmp_path / "second/config.json").write_text('{"model.base": "owner/older"}')
    second = str(tmp_path / "second/export/policy")
    assert policies_at(tmp_path / "run", tmp_path / "second") == (run, Policy("owner/older", adapter=second))
    assert Policy.at("owner/name") == Policy("owner/name")
    assert Policy.at("owner/name:sub", "owner/base") == Policy("owner/base", "owner/name:sub")
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole/model_index.json").write_text("{}")
    assert Policy.at(tmp_path / "whole") == Policy(str(tmp_path / "whole"))
    (tmp_path / "part").mkdir()
    with pytest.raises(UserError, match="is a part of a model, and no run says of which: give --baseline"):
        Policy.at(tmp_path / "part")
