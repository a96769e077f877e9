"""The source of samples that a configuration names."""

from pathlib import Path

from onereward_jax.config.schema import Finetuning, Recipe, SceneData
from onereward_jax.data.captioned import CaptionedFolder, hold_out, read_captioned
from onereward_jax.data.source import Source
from onereward_jax.errors import UserError
from onereward_jax.proving_ground.scenes import ProvingGround


def open_source(config: Recipe, split: str, target_flaws: float = 0.0) -> Source:
    """Open the captioned folder `config.data.path`, or where the recipe has none the proving ground.

    Args:
      split: "train" or, of what is held out, "test".
      target_flaws: share of the proving ground's targets that carry a synthetic defect; no other source has any.

    Raises:
      FileNotFoundError, UserError: the folder or its photographs can't be used.
    """
    if isinstance(config, Finetuning):
        data = config.data
        images = read_captioned(Path(data.path), data.caption, data.bad_share, data.inside_only)
        trained_on, held_out = hold_out(images, data.held_out_share, config.seed)
        if split == "test" and not held_out:
            raise UserError("no image is held out to be evaluated on: raise data.held_out_share")
        return CaptionedFolder(config, trained_on if split == "train" else held_out)
    assert isinstance(config.data, SceneData)
    scenes = config.data
    return ProvingGround(split, scenes.resolution, scenes.seed, scenes.photos or None, target_flaws)


def proving_ground_of(source: Source, purpose: str) -> ProvingGround:
    """The source itself, where its scenes are needed and not its samples alone.

    Args:
      purpose: what needs them, the subject of the error's sentence.

    Raises:
      UserError: the source is another.
    """
    if not isinstance(source, ProvingGround):
        raise UserError(f"{purpose} needs scenes of the proving ground: leave data.path empty")
    return source
