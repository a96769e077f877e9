"""Parameter trees."""

import numpy as np
import pytest

from onereward_jax import tree


def test_models_are_averaged_leaf_by_leaf():
    first, second = ({"a": {"b": np.float32([x, 4.0])}, "c": np.float32(x)} for x in (1.0, 3.0))
    mean = tree.mean([first, second])
    np.testing.assert_array_equal(mean["a"]["b"], [2.0, 4.0])
    assert mean["c"] == 2.0
    with pytest.raises(ValueError, match="checkpoints of one training run"):
        tree.mean([first, {"a": {"b": np.zeros(3)}, "c": np.float32(0)}])
