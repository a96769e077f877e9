"""What a batch's answers are summed up to, whole or in micro-batches."""

import jax
import numpy as np
import pytest

from onereward_jax.rl.accumulation import mean_over
from onereward_jax.rl.reward_metrics import cell_sums, with_rewards
from onereward_jax.tasks import CELLS


def test_deviation_and_the_share_of_sure_answers():
    draw = np.random.default_rng(0)
    p_yes = draw.uniform(0.5, 1, (8, 3)).astype(np.float32)
    cell = draw.integers(-1, len(CELLS), (8, 3)).astype(np.int32)  # some are padding
    asked = p_yes[cell >= 0]
    whole = cell_sums(p_yes, cell)
    parts = mean_over(lambda part: cell_sums(*part), jax.tree.map(lambda x: x.reshape(4, 2, 3), (p_yes, cell)))
    for sums in (whole, parts):
        found = with_rewards(sums)
        assert float(found["rewards/mean"]) == pytest.approx(asked.mean(), rel=1e-5)
        assert float(found["learning/reward_deviation"]) == pytest.approx(asked.std(), rel=1e-4)
        assert float(found["learning/reward_sure"]) == pytest.approx((asked > 0.95).mean(), rel=1e-5)
        assert not any(name.startswith("reward_") for name in found)
