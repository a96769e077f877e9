"""An ensemble of judges: adapters on one base, whose P(Yes) is averaged.

A policy that exploits one judge's errors gains less from the mean of several (Coste et al. 2023, "Reward Model
Ensembles Help Mitigate Overoptimization").
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from onereward_jax import tree as trees
from onereward_jax.config.schema import MOST_DISAGREEMENT
from onereward_jax.errors import UserError
from onereward_jax.judge import answer_probabilities
from onereward_jax.judge.judge import Judge
from onereward_jax.judge.scorer import JudgeScorer, Questions, unit_range
from onereward_jax.models.lora import attach
from onereward_jax.weights.peft_adapters import load_adapters

MEMBERS = "members"  # key of the adapters, stacked over a leading axis, beside the base's parameters


@dataclasses.dataclass(frozen=True)
class EnsembleScorer:
    """Averages P over the members of an ensemble; called like `JudgeScorer`.

    Members share the vision tower, so each image is encoded once. The rest runs one member at a time: without a
    gradient, memory does not grow with their number; with one, each member keeps its residuals.

    Attributes:
      member: the scorer of every member; only the parameters differ.
      max_disagreement: see `mean_of_members`.
    """

    member: JudgeScorer
    max_disagreement: float = MOST_DISAGREEMENT

    def __call__(
        self, params: Any, first: Any, second: Any, questions: Questions, both_orders: bool = False
    ) -> jax.Array:
        """See `JudgeScorer`; `params` holds the base's parameters and, under "members", the stacked adapters."""
        base = {name: part for name, part in params.items() if name != MEMBERS}
        model, settings = self.member.model, self.member.settings
        first, second = (
            answer_probabilities.encode_image(model, base, unit_range(x), settings) for x in (first, second)
        )
        answer = lambda adapter: self.member(attach(base, adapter), first, second, questions, both_orders)
        log_p = jax.lax.map(answer, params[MEMBERS])
        return mean_of_members(log_p, self.max_disagreement)


def mean_of_members(log_p: jax.Array, max_disagreement: float = MOST_DISAGREEMENT) -> jax.Array:
    """log of the mean P of members, whose log P of both answers is (M, ..., 2).

    An answer on which they disagree, by a standard deviation of P(Yes) above `max_disagreement`, has no gradient: where
    judges differ, one of them is wrong, and a policy would learn which.
    """
    mean = jax.nn.logsumexp(log_p, axis=0) - jnp.log(float(log_p.shape[0]))
    if max_disagreement >= MOST_DISAGREEMENT:
        return mean
    agreed = jnp.exp(log_p[..., :1]).std(axis=0) <= max_disagreement
    return jnp.where(agreed, mean, jax.lax.stop_gradient(mean))


class Ensemble(Judge):
    """A judge whose P is the mean of its members' P. Made by `ensemble`."""

    def __init__(self, *arguments: Any, max_disagreement: float = MOST_DISAGREEMENT, **templates: Any):
        super().__init__(*arguments, **templates)
        self.scorer = EnsembleScorer(self.scorer, max_disagreement)

    def save_pretrained(self, directory: str | Path, params: Any = None, dtype: str = "float32") -> None:
        raise UserError("an ensemble has no files of its own: keep the base and the adapters")


def ensemble(judge: Judge, adapters: Sequence[str | Path], max_disagreement: float = MOST_DISAGREEMENT) -> Judge:
    """Make an ensemble whose members are adapters in PEFT's layout; without adapters, return the judge itself.

    Args:
      judge: the base that all adapters were trained on.
      adapters: directories, files or repositories, see `weights.peft_adapters.load_adapters`.
      max_disagreement: see `mean_of_members`; of an answer's gradient, the answers are the same.

    Raises:
      FileNotFoundError, UserError: an adapter is missing, does not fit the judge, differs from the first in layers or
        rank, or adapts the vision tower, which members share.
    """
    if not adapters:
        return judge
    loaded = [load_adapters("judge", judge.params, [(path, 1.0)]) for path in adapters]
    first = {path: leaf.shape for path, leaf in trees.flatten(loaded[0]).items()}
    for path, adapter in zip(adapters, loaded, strict=True):
        if "visual" in adapter:
            raise UserError(f"{path} adapts the vision tower, which ensemble members share: train without that")
        if {name: leaf.shape for name, leaf in trees.flatten(adapter).items()} != first:
            raise UserError(
                f"{path} differs from {adapters[0]} in layers or rank: train both with the same lora settings"
            )
    members = jax.tree.map(lambda *leaves: np.stack(leaves), *loaded)
    return Ensemble(
        judge.model,
        {**judge.params, MEMBERS: members},
        judge.tokenizer,
        judge.settings,
        max_disagreement=max_disagreement,
        template=judge.template,
        template_with_prompt=judge.template_with_prompt,
    )


def members(judge: Judge) -> Iterator[tuple[Judge, Any]]:
    """Yield the judges of an ensemble one by one, as (a judge, parameters); of a single judge, itself.

    All of them are called by one program: only the parameters differ.
    """
    if not isinstance(judge, Ensemble):
        yield judge, judge.params
        return
    base = {name: part for name, part in judge.params.items() if name != MEMBERS}
    templates = {"template": judge.template, "template_with_prompt": judge.template_with_prompt}
    one = Judge(judge.model, base, judge.tokenizer, judge.settings, **templates)
    for number in range(jax.tree.leaves(judge.params[MEMBERS])[0].shape[0]):
        yield one, attach(base, jax.tree.map(lambda stacked, n=number: stacked[n], judge.params[MEMBERS]))
