"""The requests that candidates are made for, in one form: a user's own, or scenes of the proving ground."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onereward_jax.config.schema import RewardFeedback
from onereward_jax.data.buckets import Size
from onereward_jax.data.preferences.record import SOURCE
from onereward_jax.data.requests.read import fingerprint_of
from onereward_jax.data.requests.record import Request
from onereward_jax.data.requests.source import Requests
from onereward_jax.data.sample import Sample
from onereward_jax.proving_ground import ProvingGround

# Requests of a size; rarer ones are cropped to the nearest such size, so that few programs are compiled.
_COMMON = 8


@dataclasses.dataclass(frozen=True)
class Item:
    """A request without its images.

    Attributes:
      id: unique.
      size: (height, width).
      sample: makes the request itself; raises OSError or UserError if its images can't be read any more.
      notes: of its record.
    """

    id: str
    size: Size
    sample: Callable[[], Sample]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Requests to make candidates for.

    Attributes:
      about: JSON values that identify them.
      where: for messages.
    """

    items: Sequence[Item]
    about: dict[str, Any]
    where: str


def own_requests(requests: Sequence[Request], where: str, settings: Mapping[str, Any]) -> Asked:
    """A user's requests, each cropped to one of a few sizes; one for several tasks is asked of one of them.

    Args:
      requests: at least one, with sizes and digests.
      settings: by dotted name, of `RewardFeedback`: its `seed` and `data`.
    """
    weights = dict.fromkeys(RewardFeedback().data.task_weights, 1.0)
    config = RewardFeedback().replace({"data.task_weights": weights, "train.batch_size": _COMMON, **settings})
    source = Requests(config, requests)
    items = [
        Item(request.id, source.size_of(request), functools.partial(source.fixed_sample, request), _notes(request))
        for request in requests
    ]
    about = {"requests": fingerprint_of(requests), "sizes": source.sizes, "hole": source.hole, "seed": source.seed}
    return Asked(items, about, where)


def _notes(request: Request) -> Mapping[str, Any]:
    """The request's notes, and the digest of its image file.

    Two crops of one image have no bytes in common, and its name is another one after every step and in every folder.
    """
    return {SOURCE: request.image_digest, **request.notes}


def scenes(ground: ProvingGround, tasks: Sequence[str], first: int, count: int) -> Asked:
    """Scenes of the proving ground; a record's notes name its scene, so that its ground truth can be found.

    A scene is the same source image at every resolution, and another one for each task.

    Args:
      first, count: of the scenes of each task.
    """
    size = ground.resolution, ground.resolution

    def item(index: int, task: str) -> Item:
        name = f"{ground.split}/{ground.seed}/{task}/{index}"
        notes = {SOURCE: f"proving_ground/{name}", "scene": index, "split": ground.split}
        return Item(name, size, functools.partial(ground.sample, index, task), notes)

    items = [item(index, task) for index in range(first, first + count) for task in tasks]
    about = {**ground.fingerprint(), "split": ground.split, "size": size, "seed": ground.seed}
    return Asked(items, {**about, "tasks": tasks, "first": first, "count": count}, "the proving ground")
