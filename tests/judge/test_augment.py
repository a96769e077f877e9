"""Augmentations change both images of a pair equally."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from onereward_jax.judge.augment import flip_together, noise_together, perturb_against, retone_together, shift_together


def pair(size=6, shape=(12, 10, 3)):
    generator = np.random.default_rng(0)
    return generator.random((2, size, *shape), dtype=np.float32)


def test_both_images_shift_by_the_same_bounded_offset():
    first, _ = pair()
    keys = jax.random.split(jax.random.key(0), len(first))
    moved, moved_too = shift_together(keys, first, first + 1, max_shift=2)
    np.testing.assert_allclose(moved_too, moved + 1, rtol=1e-6)
    padded = np.pad(first, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    offsets = []
    for row, image in enumerate(np.asarray(moved)):
        fits = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if np.array_equal(padded[row, down : down + 12, right : right + 10], image)
        ]
        assert len(fits) == 1
        offsets += fits
    assert len(set(offsets)) > 2


def test_a_shift_depends_on_the_pairs_key_alone():
    first, second = pair()
    keys = jax.random.split(jax.random.key(3), len(first))
    together = shift_together(keys, first, second, max_shift=3)
    alone = shift_together(keys[4:5], first[4:5], second[4:5], max_shift=3)
    for whole, part in zip(together, alone, strict=True):
        np.testing.assert_array_equal(whole[4:5], part)


@pytest.mark.parametrize("change", [shift_together, noise_together])
def test_zero_changes_nothing(change):
    first, second = pair()
    same = change(jax.random.split(jax.random.key(0), len(first)), first, second, 0)
    assert same[0] is first
    assert same[1] is second


def test_both_images_of_a_pair_get_the_same_noise():
    first, second = pair(size=64)
    keys = jax.random.split(jax.random.key(0), len(first))
    noisy, noisy_too = noise_together(keys, first, second, max_noise=0.2)
    noise = noisy - first
    np.testing.assert_allclose(noisy_too - second, noise, atol=1e-6)
    amounts = np.asarray(noise).std(axis=(1, 2, 3))
    assert 0 < amounts.min() < 0.05
    assert 0.15 < amounts.max() < 0.22
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.2
    np.testing.assert_array_equal(noise_together(keys[4:5], first[4:5], second[4:5], 0.2)[0], noisy[4:5])


@pytest.mark.parametrize("prompt", ["remove", "a small red circle"])
def test_all_flips_occur_and_agree(prompt):
    first, second = pair(1, (12, 12, 3))[:, 0]
    ways = [
        lambda x, axes=axes, down=down, right=right: x.transpose(*axes, 2)[::down, ::right]
        for axes in ((0, 1), (1, 0))
        for down in (1, -1)
        for right in (1, -1)
    ]
    generator = np.random.default_rng(0)
    seen = set()
    for _ in range(80):
        flipped, flipped_too = flip_together(generator, first, second, prompt)
        fits = [
            number
            for number, way in enumerate(ways)
            if np.array_equal(flipped, way(first)) and np.array_equal(flipped_too, way(second))
        ]
        assert len(fits) == 1
        seen |= set(fits)
    assert len(seen) == 8


@pytest.mark.parametrize("prompt", ["a red circle on the left", "a blue star at the top", 'the word "SUN" in red'])
def test_prompts_with_sides_or_words_are_not_mirrored(prompt):
    first, second = pair(1)[:, 0]
    for seed in range(10):
        flipped, flipped_too = flip_together(np.random.default_rng(seed), first, second, prompt)
        np.testing.assert_array_equal(flipped, first)
        np.testing.assert_array_equal(flipped_too, second)


def test_tones_change_equally_and_keep_their_order():
    generator = np.random.default_rng(1)
    first = generator.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    second = 255 - first
    kept = 0
    for _ in range(40):
        toned, toned_too, same_colours = retone_together(generator, first, second)
        assert toned.dtype == np.uint8
        kept += same_colours
        # One rising curve for both; the channels exchanged alike.
        channels = [
            permutation
            for permutation in itertools.permutations(range(3))
            if _is_one_rising_curve(first[..., permutation], second[..., permutation], toned, toned_too)
        ]
        assert len(channels) == 1
        assert (channels[0] == (0, 1, 2)) == same_colours
    assert 10 < kept < 35


def _is_one_rising_curve(first, second, toned, toned_too):
    before, after = np.concatenate([first, second]).ravel(), np.concatenate([toned, toned_too]).ravel()
    order = np.argsort(before, kind="stable")
    before, after = before[order].astype(int), after[order].astype(int)
    return (np.diff(after) >= 0).all() and (np.diff(after)[np.diff(before) == 0] == 0).all()


def test_an_adversary_raises_the_loss_by_no_more_than_its_radius():
    first, second = jnp.asarray(pair())
    weights = jnp.asarray(np.random.default_rng(2).normal(size=first.shape).astype(np.float32))
    loss = lambda a, b: (weights * (a - b)).sum()
    keys, radius = jax.random.split(jax.random.key(0), len(first)), 0.05
    worse_first, worse_second = perturb_against(loss, keys, first, second, radius)
    assert float(loss(worse_first, worse_second)) > float(loss(first, second))
    for images, worse in ((first, worse_first), (second, worse_second)):
        assert float(worse.min()) >= 0
        assert float(worse.max()) <= 1
        change = np.abs(worse - images).max(axis=(1, 2, 3))
        assert (change <= radius + 1e-6).all()
        assert len(set(np.round(change, 4))) > 3  # each pair has its own bound
        assert change.max() > radius / 2
    np.testing.assert_array_equal(perturb_against(loss, keys, first, second, 0.0)[0], first)
    alone, _ = perturb_against(lambda a, b: (weights[2:3] * (a - b)).sum(), keys[2:3], first[2:3], second[2:3], radius)
    np.testing.assert_allclose(alone, worse_first[2:3], atol=1e-6)
