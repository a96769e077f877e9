import numpy as np
import pytest

from onereward_jax.data import masks
from onereward_jax.errors import UserError


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (300, 200)])
@pytest.mark.parametrize("kind", masks.COVERING_KINDS)
def test_a_covering_mask_fills_its_bounds_and_not_much_more(kind, size):
    height, width = size
    bounds = (0.3 * width, 0.25 * height, 0.8 * width, 0.75 * height)
    inside = masks.box(height, width, bounds).astype(bool)
    for seed in range(10):
        mask = masks.cover(kind, height, width, bounds, np.random.default_rng(seed))
        assert mask.shape == size
        assert mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 1}
        assert mask[inside].mean() > 0.5
        assert mask[~inside].mean() < 0.15
        assert mask[height // 2, int(0.55 * width)] == 1


def test_borders():
    mask = masks.borders(10, 20, {"left": 3, "bottom": 2})
    assert mask[:, :3].all()
    assert mask[8:].all()
    assert mask.sum() == 3 * 10 + 2 * 17
    assert masks.bounding_box(1 - mask) == (3, 0, 20, 8)


def test_wrong_arguments_are_refused():
    with pytest.raises(UserError, match="'north'"):
        masks.borders(10, 10, {"north": 2})
    with pytest.raises(UserError):
        masks.borders(10, 10, {"left": 5, "right": 5})
    with pytest.raises(UserError, match="'lasso'"):
        masks.cover("lasso", 10, 10, (0, 0, 5, 5), np.random.default_rng(0))
    with pytest.raises(UserError):
        masks.bounding_box(np.zeros((4, 4), np.uint8))


@pytest.mark.parametrize("draw", [masks.random_cover, masks.random_borders])
def test_drawn_masks_cover_a_part(draw):
    made = [draw(48, 80, np.random.default_rng(seed), 0.2, 0.7) for seed in range(40)]
    assert all(mask.shape == (48, 80) and 0.02 < mask.mean() < 0.95 for mask in made)
    np.testing.assert_array_equal(made[0], draw(48, 80, np.random.default_rng(0), 0.2, 0.7))
    assert len({mask.tobytes() for mask in made}) > 30
    widths = [masks.bounding_box(mask)[2] - masks.bounding_box(mask)[0] for mask in made]
    assert min(widths) >= 10
    if draw is masks.random_cover:
        assert max(widths) <= 80 * 0.75
