"""`onereward check` beside the official libraries: the packaged miniature, by diffusers, transformers and ourselves."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from benchmarks.official_answers import fill_answers, judge_answers, write_answers
from onereward_jax.config.load import load_config
from onereward_jax.proving_ground import ProvingGround
from onereward_jax.questions import question
from onereward_jax.runs.check import FirstContact, read_answers
from tests.support import parity

SETTINGS = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 16}


@pytest.fixture(scope="module")
def contact(tmp_path_factory):
    sample = ProvingGround("test").scene(2, "image_fill").sample
    grey = np.where(sample.mask[..., None] == 1, np.uint8(128), sample.image)
    with pytest.MonkeyPatch.context() as patch, parity.one_thread():
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        patch.setattr(
            DiagonalGaussianDistribution, "sample", DiagonalGaussianDistribution.sample
        )  # put back afterwards
        fill = fill_answers("miniature/base", sample.image, sample.mask, sample.prompt, **SETTINGS)
        asked = [question("image_fill", "structure"), question("image_fill", "consistency")]
        judge = judge_answers("miniature/judge", [(sample.image, grey)] * 2, asked)
    directory = tmp_path_factory.mktemp("check")
    write_answers(directory / "answers.npz", fill, judge)
    found = FirstContact(load_config("quick"), directory, directory / "answers.npz")
    found._answers = read_answers(found.answers)
    return found


def test_a_fill_is_diffusers_and_the_judges_answers_are_transformers(contact):
    for check in (contact._fill, contact._judge):
        figure, goes = check()
        assert goes, figure


def test_other_weights_are_seen(contact):
    """Answers of weights that differ by more than rounding."""
    changed = dict(contact._answers)
    changed["fill/float32"] = 0.99 * changed["fill/float32"]
    changed["judge/float32"] = 0.9 * changed["judge/float32"] + 0.05
    contact = dataclasses.replace(contact)
    contact._answers = changed
    assert not contact._fill()[1]
    assert not contact._judge()[1]
