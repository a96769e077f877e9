"""The ground-truth score of an image: how well it answers a scene, per preference dimension.

The scorer knows the scene's hidden ground truth (`Spec`), which neither judge nor policy ever sees. Each dimension is a
product of factors in [0, 1]. A factor is exp(-(excess / scale)²), where excess is how far a measurement lies beyond the
values that the photograph itself would show:

    text_alignment   the named object is there, in the named colour, shape, size and place; the word is spelt right
    consistency      no seam at the mask's border; colour and grain of the photograph in the hole agree with the
                     surroundings; the kept part is unchanged
    structure        outline or strokes are well-formed, whatever they show; no checkerboard, streaks or void
    aesthetics       exposure, contrast, colour cast, saturation and noise of the image; an even object
    removal_quality  the object is gone and the hole looks like photograph

The dimensions are separate by construction: a tone change of the whole image is estimated on the kept pixels, counted
under aesthetics and undone before anything else is measured; consistency compares the hole with the image's own
surroundings; structure asks for any clean form, text alignment for the named one.

Everything is measured at 64x64; images of other sizes are averaged to it.
"""

from onereward_jax.proving_ground.scorer.dimensions import score
from onereward_jax.proving_ground.scorer.measures import SIDE
from onereward_jax.proving_ground.scorer.verdicts import TIE_MARGIN, Verdict, compare, overall, verdict

__all__ = ["SIDE", "TIE_MARGIN", "Verdict", "compare", "overall", "score", "verdict"]
