"""The source of samples that a configuration names."""

from onereward_jax.config.schema import Recipe, RequestData, SceneData
from onereward_jax.data.requests.source import HeldOut, Requests, read_split
from onereward_jax.data.source import Source
from onereward_jax.errors import UserError
from onereward_jax.proving_ground.scenes import ProvingGround


def open_source(config: Recipe, split: str, target_flaws: float = 0.0) -> Source:
    """Open the requests of `config.data.source`, or where there is none the proving ground.

    Args:
      split: "train" or, of what is held out, "test".
      target_flaws: share of the proving ground's targets that carry a synthetic defect; no other source has any.

    Raises:
      FileNotFoundError, UserError: the requests or photographs can't be used.
    """
    data = config.data
    if isinstance(data, RequestData) and data.source:
        trained_on, held_out = read_split(config)
        if split == "test" and not held_out:
            raise UserError("no request is held out to be evaluated on: raise data.held_out_share")
        source = Requests(config, trained_on)
        return source if split == "train" else HeldOut(source, held_out)
    assert isinstance(data, SceneData)
    return ProvingGround(split, data.resolution, data.seed, data.photos or None, target_flaws)


def proving_ground_of(source: Source, purpose: str) -> ProvingGround:
    """The source itself, where its scenes are needed and not its samples alone.

    Args:
      purpose: what needs them, the subject of the error's sentence.

    Raises:
      UserError: the source is another.
    """
    if not isinstance(source, ProvingGround):
        raise UserError(f"{purpose} needs scenes of the proving ground: leave data.source empty")
    return source
