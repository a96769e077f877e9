"""Random settings of candidates, as in the paper: steps, negative prompt, guidance, strength of the initial noise."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from onereward_jax.config.schema import Preferences
from onereward_jax.errors import UserError

NEGATIVE_PROMPTS = ("", "nsfw", "blurry", "low quality")
_NOISE_STRENGTHS = 0.9, 1.1


@dataclasses.dataclass(frozen=True)
class Ranges:
    """What the settings of candidates are drawn from.

    Attributes:
      min_steps, max_steps: Euler steps.
      guided_share: share of the candidates with true guidance; the rest has a scale of 1.
      max_true_cfg_scale: largest scale of that guidance, from 1.2.
      min_guidance_scale, max_guidance_scale: of the embedded guidance.
      one_step_share: share that stop early and predict the rest in one step.
    """

    min_steps: int
    max_steps: int
    guided_share: float
    max_true_cfg_scale: float
    min_guidance_scale: float = 1.0
    max_guidance_scale: float = 1.0
    one_step_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "guidance_scale"):
            least, most = (getattr(self, f"{end}_{name}") for end in ("min", "max"))
            if least > most:
                raise UserError(f"min_{name} is {least}, above max_{name}, {most}: change one of them")


def preference_ranges(settings: Preferences) -> Ranges:
    """The ranges of the proving ground's preference data."""
    return Ranges(
        settings.min_steps,
        settings.max_steps,
        settings.guided_share,
        settings.max_true_cfg_scale,
        one_step_share=settings.one_step_share,
    )


def draw_settings(ranges: Ranges, generator: np.random.Generator) -> dict[str, Any]:
    """Draw random arguments of `FillPipeline.generate`, and the strength of the initial noise."""
    num_steps = int(generator.integers(ranges.min_steps, ranges.max_steps + 1))
    one_step = generator.random() < ranges.one_step_share
    stop = int(generator.integers(num_steps // 4, num_steps)) if one_step else None
    guided = generator.random() < ranges.guided_share
    drawn = {
        "num_steps": num_steps,
        "stop": stop,
        "guidance_scale": ranges.min_guidance_scale,
        "true_cfg_scale": float(generator.uniform(1.2, ranges.max_true_cfg_scale)) if guided else 1.0,
        "negative_prompt": str(generator.choice(NEGATIVE_PROMPTS)),
        "noise_strength": float(generator.uniform(*_NOISE_STRENGTHS)),
    }
    # Last, and only where there is a choice: data made without one stays what it was.
    if ranges.min_guidance_scale < ranges.max_guidance_scale:
        drawn["guidance_scale"] = float(generator.uniform(ranges.min_guidance_scale, ranges.max_guidance_scale))
    return drawn


def candidate_settings(ranges: Ranges, seed: int, request: str, candidate: int) -> dict[str, Any]:
    """Draw the settings of a candidate: they depend on the arguments alone, not on what else is made with it.

    Args:
      seed: of all candidates.
      request: its id.
      candidate: its number.

    Returns:
      "num_steps", "guidance_scale", "true_cfg_scale", "negative_prompt" ("" without true guidance, which alone reads
      it), "noise_strength", and "seed", of its noise.
    """
    generator = np.random.default_rng((seed, *_words(request), candidate))
    drawn = draw_settings(ranges, generator)
    drawn.pop("stop")
    if drawn["true_cfg_scale"] == 1.0:
        drawn["negative_prompt"] = ""
    return drawn | {"seed": int(generator.integers(2**31))}


def models_of(request: str, seed: int, candidates: int, models: Sequence[Any]) -> list[Any]:
    """Which model makes each candidate of a request: each makes as many, and who makes one more is random."""
    first = int(np.random.default_rng((seed, *_words(request))).integers(len(models)))
    return [models[(first + number) % len(models)] for number in range(candidates)]


def _words(text: str) -> tuple[int, ...]:
    """A text as numbers to seed a generator with."""
    digest = hashlib.sha256(text.encode()).digest()
    return tuple(int.from_bytes(digest[at : at + 4], "little") for at in range(0, 16, 4))
