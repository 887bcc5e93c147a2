"""What is gathered while volumes pass by, against the same from all of them at once."""

from __future__ import annotations

import numpy as np
import pytest

from slimbrain_app.prepare.statistics import Gaps, Stillness, moments_of


def moments_around(row, rows, size=16):
    parts = [rows[first : first + size] for first in range(0, len(rows), size)]
    return moments_of(rows[row].copy(), parts, threads=2)


@pytest.mark.parametrize("volumes", [1, 2, 8, 9, 100])
def test_moments_are_those_of_all_rows_together(volumes):
    rows = np.random.default_rng(0).normal(10_000, 50, (volumes, 40)).astype(np.float32)
    mean, deviation = moments_around(volumes // 2, rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0, dtype=float), rtol=1e-7)
    np.testing.assert_allclose(deviation, rows.std(axis=0, dtype=float), rtol=1e-5, atol=1e-6)


def test_bright_first_volume_costs_no_digits():
    rows = np.random.default_rng(0).normal(10_000, 50, (200, 40)).astype(np.float32)
    rows[0] += 4_000
    deviation = moments_around(25, rows)[1]
    np.testing.assert_allclose(deviation, rows.std(axis=0, dtype=float), rtol=1e-5)


def test_rounding_is_no_deviation():
    rows = np.full((50, 3), 10_000, np.float32)
    rows[::2, 1] = np.nextafter(np.float32(10_000), np.float32(20_000))
    rows[::2, 2] += 1
    deviation = moments_around(25, rows)[1]
    assert deviation[:2].tolist() == [0, 0]
    assert deviation[2] > 0.4


def test_still_voxels_are_those_that_keep_their_number():
    volumes = np.random.default_rng(0).integers(0, 1000, (9, 60))
    volumes[:, [5, 20, 41]] = 7
    volumes[-1, 20] = 6
    stillness = Stillness(np.array([3, 5, 20]))
    for volume in volumes:
        stillness.watch(volume)
    assert stillness.still.tolist() == [1]


@pytest.fixture
def gappy():
    """Ten volumes of eleven voxels: one is never finite, three others miss volume 4 or 7."""
    values = np.random.default_rng(0).normal(100, 5, (10, 11))
    values[:, 3] = np.nan
    values[4, [0, 9]] = np.inf
    values[7, [9, 10]] = -np.inf, 1e300
    return values


@pytest.fixture
def gaps(gappy):
    gaps = Gaps(np.arange(11))
    for volume in gappy:
        gaps.watch(volume)
    return gaps


def test_gaps_remember_where_they_were(gaps, gappy):
    # What does not fit into float32 is a gap as well.
    expected = ~(np.abs(gappy) < 1e38)
    flags = [gaps.missing(volume) for volume in range(10)]
    np.testing.assert_array_equal(flags, expected)
    np.testing.assert_array_equal(gaps.counts(), expected.sum(axis=0))


def test_voxel_that_is_never_finite_is_dead(gaps):
    assert np.flatnonzero(gaps.dead()).tolist() == [3]


def test_mean_is_taken_over_finite_values(gaps, gappy):
    finite = np.where(np.abs(gappy) < 1e38, gappy, np.nan)
    alive = np.arange(11) != 3
    np.testing.assert_allclose(gaps.means()[alive], np.nanmean(finite[:, alive], axis=0), rtol=1e-6)
    assert gaps.means()[3] == 0


def test_series_without_gaps_has_none():
    gaps = Gaps(np.arange(4))
    gaps.watch(np.ones(4, np.float32))
    assert gaps.volumes == ()
    assert not gaps.dead().any()
