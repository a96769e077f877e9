"""Bucket sizes and the mapping of rare ones. Draws are tested in tests/judge/test_pairs.py."""

import pytest

from onereward_jax.data.buckets import aspect_distance, bucket_sizes, common_shapes


@pytest.mark.parametrize(("resolution", "step"), [(64, 16), (512, 64), (1024, 64), (1024, 16)])
def test_sizes_have_about_one_area_and_sides_that_divide(resolution, step):
    sizes = bucket_sizes(resolution, step, 2.0)
    assert (resolution, resolution) in sizes
    for height, width in sizes:
        assert height % step == width % step == 0
        assert max(height, width) <= 2 * min(height, width)
        assert resolution**2 - max(height, width) * step < height * width <= resolution**2
        assert (width, height) in sizes
    assert bucket_sizes(resolution, step, 1.0) == ((resolution, resolution),)


def test_rare_shapes_map_to_the_nearest_common_one():
    square, wide, tall, slim = (8, 8), (8, 16), (16, 8), (8, 20)
    shown = common_shapes([square] * 4 + [wide] * 4 + [tall, slim], 4, aspect_distance)
    assert shown == {square: square, wide: wide, tall: square, slim: wide}
    assert common_shapes([wide, tall, tall], 4, aspect_distance) == {wide: tall, tall: tall}
