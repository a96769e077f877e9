"""The truth about an image: how well it answers a scene, per preference dimension.

The scorer knows the scene's hidden truth (`Spec`): neither judge nor policy ever sees it. Each dimension is a
product of factors in [0, 1], and each factor is a bell, exp(-(excess / scale)²), of how far one measurement lies
beyond what the photograph itself would show:

  text_alignment   the named thing is there, in the named colour, shape, size and place; the word is spelt right
  consistency      no seam at the mask's border; colour and grain of the hole's photograph agree with the
                   surroundings; what was to be kept was kept
  structure        outline or strokes are well-formed, whatever they show; no checkerboard, streaks or void
  aesthetics       exposure, contrast, colour cast, saturation and noise of the picture; an even object
  removal_quality  the object is gone and the hole passes as photograph

The dimensions are kept apart by construction: a tone change of the whole picture is estimated on the kept pixels,
charged to aesthetics and undone before anything else is measured; consistency compares the hole with the image's own
surroundings; structure asks whether the form is any clean form, text alignment whether it is the named one.

All is measured at 64x64, to which images of other sizes are averaged.
"""

from onereward_jax.proving_ground.scorer.dimensions import score
from onereward_jax.proving_ground.scorer.measures import SIDE
from onereward_jax.proving_ground.scorer.verdicts import TIE_MARGIN, Verdict, compare, overall, verdict

__all__ = ["SIDE", "TIE_MARGIN", "Verdict", "compare", "overall", "score", "verdict"]
