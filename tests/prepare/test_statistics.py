"""What is gathered while volumes pass by, against the same from all of them at once."""

from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.prepare.statistics import Gaps, Moments, Stillness


def moments_of(rows):
    moments = Moments(rows.shape[1])
    for row in rows:
        moments.add(row)
    return moments.settle()


@pytest.mark.parametrize("volumes", [1, 2, 8, 9, 100])
def test_moments_are_those_of_all_rows_together(volumes):
    rows = np.random.default_rng(0).normal(10_000, 50, (volumes, 40)).astype(np.float32)
    mean, deviation = moments_of(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=float), rtol=1e-7)
    np.testing.assert_allclose(deviation, rows.std(axis=0, dtype=float), rtol=1e-5, atol=1e-6)


def test_bright_first_volume_costs_no_digits():
    rows = np.random.default_rng(0).normal(10_000, 50, (200, 40)).astype(np.float32)
    rows[0] += 4_000
    deviation = moments_of(rows)[1]
    np.testing.assert_allclose(deviation, rows.std(axis=0, dtype=float), rtol=1e-5)


def test_rounding_is_no_deviation():
    rows = np.full((50, 3), 10_000, np.float32)
    rows[::2, 1] = np.nextafter(np.float32(10_000), np.float32(20_000))
    rows[::2, 2] += 1
    deviation = moments_of(rows)[1]
    assert deviation[:2].tolist() == [0, 0]
    assert deviation[2] > 0.4


def test_still_voxels_are_those_that_keep_their_value():
    volumes = np.random.default_rng(0).normal(size=(9, 3, 4, 5)).astype(np.float32)
    volumes[:, 1, 2, 3] = 7
    volumes[:, 0, 0, 0] = 5
    volumes[-1, 0, 0, 0] = 6
    volumes[:, 2, 2, 2] = 1
    watched = np.ravel_multi_index(([1, 0, 1], [2, 0, 1], [3, 0, 1]), (3, 4, 5))
    stillness = Stillness(watched)
    stillness.watch(volumes[:4])
    stillness.watch(volumes[4:])
    assert stillness.voxels.tolist() == [watched[0]]


@pytest.fixture
def gappy():
    """Ten volumes of eleven voxels: one is never finite, three others miss volume 4 or 7."""
    values = np.random.default_rng(0).normal(100, 5, (10, 11)).astype(np.float32)
    missing = np.zeros(values.shape, bool)
    missing[:, 3] = True
    missing[4, [0, 9]] = True
    missing[7, [9, 10]] = True
    return values, missing


@pytest.fixture
def gaps(gappy):
    values, missing = gappy
    gaps = Gaps(np.arange(11))
    for value, flags in zip(np.where(missing, 0, values), missing, strict=True):
        gaps.watch(value, flags if flags.any() else None)
    return gaps


def test_gaps_remember_where_they_were(gaps, gappy):
    flags = [gaps.missing(volume) for volume in range(10)]
    np.testing.assert_array_equal(flags, gappy[1])


def test_gaps_are_counted_per_voxel(gaps, gappy):
    np.testing.assert_array_equal(gaps.counts(), gappy[1].sum(axis=0))


def test_voxel_that_is_never_finite_is_dead(gaps):
    assert np.flatnonzero(gaps.dead()).tolist() == [3]


def test_mean_is_taken_over_finite_values(gaps, gappy):
    values, missing = gappy
    alive = np.arange(11) != 3
    expected = np.nanmean(np.where(missing, np.nan, values)[:, alive], axis=0, dtype=float)
    np.testing.assert_allclose(gaps.means()[alive], expected, rtol=1e-6)
    assert gaps.means()[3] == 0


def test_series_without_gaps_has_none():
    gaps = Gaps(np.arange(4))
    gaps.watch(np.ones(4, np.float32), None)
    assert gaps.volumes == ()
    assert not gaps.dead().any()
