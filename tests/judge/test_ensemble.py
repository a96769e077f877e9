"""An ensemble is the mean of its members, with its gradient."""

import jax
import numpy as np
import pytest

from onereward_jax import tree
from onereward_jax.errors import UserError
from onereward_jax.judge.ensemble import ensemble, mean_of_members, members
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.question_batches import question_batch
from onereward_jax.models import lora
from onereward_jax.weights.peft_adapters import save_adapter
from tests.support import tiny_judge

LAYERS = "layers/(self_attn|mlp)/"


def adapter(seed, rank=2, targets=LAYERS):
    draw = np.random.default_rng(seed)
    made = lora.LoRA(rank, targets=targets).init(tiny_judge.judge().params, jax.random.key(0))
    return jax.tree.map(lambda x: 0.3 * draw.standard_normal(x.shape).astype(np.float32), made)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    made = {"a": adapter(0), "b": adapter(1), "wider": adapter(2, rank=3), "visual": adapter(3, targets="visual")}
    for name, one in made.items():
        save_adapter(directory / name, "judge", one)
    return directory


def test_p_is_the_mean_of_the_members(files):
    judge = tiny_judge.judge()
    both = ensemble(judge, [files / "a", files / "b"])
    draw = np.random.default_rng(0)
    batch = {name: draw.random((1, 24, 24, 3)).astype(np.float32) for name in ("first", "second")}
    batch |= question_batch(judge, ["image_fill"], ["a red circle on the left"], 48).arrays()

    def p(judge, params, first):
        return jax.numpy.exp(judge.apply(params, batch | {"first": first}, both_orders=True))

    value_and_gradient = lambda judge: jax.jit(
        lambda params, first: jax.value_and_grad(lambda x: (p(judge, params, x) ** 2).sum())(first)
    )
    alone = jax.jit(lambda params, first: p(judge, params, first))
    adapted = [lora.attach(judge.params, adapter(seed)) for seed in (0, 1)]
    answers = [alone(params, batch["first"]) for params in adapted]
    expected = np.mean(answers, axis=0)
    for (_, params), answer in zip(members(both), answers, strict=True):
        np.testing.assert_allclose(alone(params, batch["first"]), answer, rtol=1e-5)
    assert np.abs(np.asarray(alone(adapted[0], batch["first"])) - expected).max() > 1e-3
    found = np.asarray(jax.jit(lambda params, first: p(both, params, first))(both.params, batch["first"]))
    asked = batch["question_lengths"] > 0
    np.testing.assert_allclose(found[:, asked], expected[:, asked], rtol=1e-4)

    value, gradient = value_and_gradient(both)(both.params, batch["first"])
    along = np.sign(gradient)
    moved = [value_and_gradient(both)(both.params, batch["first"] + size * along)[0] for size in (1e-3, -1e-3)]
    assert float(moved[0] - moved[1]) / 2e-3 == pytest.approx(float(np.abs(gradient).sum()), rel=0.05)
    assert float(value) > 0


def test_what_members_disagree_about_has_no_gradient():
    p_yes = np.array([[0.6, 0.9], [0.7, 0.2]], np.float32)  # of two members, about two questions
    log_p = np.log(np.stack([p_yes, 1 - p_yes], axis=-1))
    expected = np.log(np.stack([[0.65, 0.55], [0.35, 0.45]], axis=-1))
    for limit, gives in ((0.5, (True, True)), (0.1, (True, False)), (0.0, (False, False))):
        np.testing.assert_allclose(mean_of_members(log_p, limit), expected, rtol=1e-5)
        gradient = jax.grad(lambda x, limit=limit: mean_of_members(x, limit)[..., 0].sum())(log_p)
        assert tuple((np.asarray(gradient) != 0).any(axis=(0, 2))) == gives


def test_an_ensemble_answers_like_any_judge(files):
    judge = tiny_judge.judge()
    both = ensemble(judge, [files / "a", files / "b"])
    draw = np.random.default_rng(0)
    first, second = (draw.integers(0, 256, (20, 28, 3), np.uint8) for _ in range(2))
    ask = lambda judge: judge.compare(first, second, task="image_fill", dimension="structure")
    single = Judge(judge.model, lora.attach(judge.params, adapter(0)), judge.tokenizer, judge.settings)
    other = Judge(judge.model, lora.attach(judge.params, adapter(1)), judge.tokenizer, judge.settings)
    assert ask(both) == pytest.approx((ask(single) + ask(other)) / 2, rel=1e-4)


def test_no_member_is_the_judge_itself():
    judge = tiny_judge.judge()
    assert ensemble(judge, []) is judge
    assert [one for one, _ in members(judge)] == [judge]


@pytest.mark.parametrize("name", ["wider", "visual"])
def test_members_that_do_not_fit_are_refused(files, name):
    with pytest.raises(UserError):
        ensemble(tiny_judge.judge(), [files / "a", files / name])


def test_an_ensemble_is_not_saved(files, tmp_path):
    both = ensemble(tiny_judge.judge(), [files / "a", files / "b"])
    assert set(tree.flatten(both.params["members"]))
    with pytest.raises(UserError):
        both.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
