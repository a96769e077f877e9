"""The meters of an evaluation."""

from onereward_jax.evaluation.meters.meter import Meter
from onereward_jax.evaluation.meters.outside import OUTSIDE
from onereward_jax.evaluation.meters.removal import REMOVAL


def chosen_meters(clip: str | None = None, lpips: str | None = None, ocr: bool = False) -> list[Meter]:
    """Those that need nothing else, and those that were asked for.

    Args:
      clip: a CLIP model, for text alignment.
      lpips: a file with the weights of LPIPS.
      ocr: whether words are read.

    Raises:
      FileNotFoundError, UserError: the model or the library is missing.
    """
    meters = [OUTSIDE, REMOVAL]
    if clip is not None:
        from onereward_jax.evaluation.meters.text_alignment import text_alignment

        meters.append(text_alignment(clip))
    if lpips is not None:
        from onereward_jax.evaluation.meters.perceptual import perceptual

        meters.append(perceptual(lpips))
    if ocr:
        from onereward_jax.evaluation.meters.words import words

        meters.append(words())
    return meters
