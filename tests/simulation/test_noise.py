from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from scipy.sparse import csr_array

from slimbrain_app.simulation.noise import (
    clear_noise,
    draw_field,
    draw_wandering,
    expect_noise,
    stream_noise,
)


def test_wandering_forgets_within_its_memory():
    series = draw_wandering(20_000, 4, 2.0, 6.0, np.random.default_rng(0))
    assert series.std() == pytest.approx(1, abs=0.05)
    for lag in (1, 3):
        kept = np.mean(series[lag:] * series[:-lag])
        assert kept == pytest.approx(np.exp(-2.0 * lag / 6.0), abs=0.05)


def test_fields_have_unit_variance_everywhere(anatomy):
    generator = np.random.default_rng(0)
    fields = np.stack([draw_field(anatomy, 12.0, generator) for _ in range(150)])
    deviation = fields.std(axis=0)
    assert deviation.mean() == pytest.approx(1, abs=0.03)
    border = anatomy.coordinates[:, 2] < np.percentile(anatomy.coordinates[:, 2], 2)
    assert deviation[border].mean() == pytest.approx(1, abs=0.1)


def test_fields_are_smooth_over_their_spread(anatomy):
    """White noise blurred by a Gaussian correlates as a Gaussian sqrt(2) times as wide."""
    generator = np.random.default_rng(1)
    spread, products = 12.0, []
    for _ in range(40):
        volume = anatomy.fill_volumes(draw_field(anatomy, spread, generator))
        pair = volume[:, :, :-4], volume[:, :, 4:]
        inside = (pair[0] != 0) & (pair[1] != 0)
        products.append(np.mean(pair[0][inside] * pair[1][inside]))
    # Four voxels are 16 mm apart.
    assert np.mean(products) == pytest.approx(np.exp(-(16**2) / (4 * spread**2)), abs=0.06)


def test_noise_is_correlated_in_space_by_its_spread(anatomy):
    """Its smooth part, a known share of the variance, as the Gaussian says; the rest not at all."""
    noise = np.stack(list(islice(stream_noise(anatomy, 2.0, np.random.default_rng(2), 4.0), 60)))
    volumes = anatomy.fill_volumes((noise / expect_noise(anatomy)).astype(np.float32))
    smooth = np.mean((0.007 * anatomy.rest / expect_noise(anatomy)) ** 2)
    for steps in (1, 2, 6):
        pair = volumes[..., :-steps], volumes[..., steps:]
        inside = (pair[0] != 0) & (pair[1] != 0)
        expected = smooth * np.exp(-((steps * anatomy.voxel_size) ** 2) / (4 * 4.0**2))
        assert np.mean(pair[0][inside] * pair[1][inside]) == pytest.approx(expected, abs=0.03)


def test_noise_is_as_strong_as_expected(anatomy):
    noise = np.stack(list(islice(stream_noise(anatomy, 9.0, np.random.default_rng(4)), 150)))
    np.testing.assert_allclose(np.mean(noise.std(axis=0) / expect_noise(anatomy)), 1, rtol=0.02)


def test_noise_is_autocorrelated_but_not_wholly(anatomy):
    noise = np.stack(list(islice(stream_noise(anatomy, 2.0, np.random.default_rng(2)), 200)))
    grey = noise[:, anatomy.grey > 0.8]
    kept = np.mean(grey[1:] * grey[:-1]) / np.mean(grey**2)
    assert 0.2 < kept < np.exp(-2.0 / 3.0)


def test_thermal_noise_grows_as_voxels_shrink(anatomy):
    from dataclasses import replace

    affine = anatomy.affine.copy()
    affine[:3, :3] /= 2
    # Without signal at rest there is nothing but the scanner.
    large = replace(anatomy, rest=np.zeros_like(anatomy.rest))
    small = replace(large, affine=affine)
    deviations = [
        next(stream_noise(head, 2.0, np.random.default_rng(3))).std() for head in (large, small)
    ]
    assert deviations[1] / deviations[0] == pytest.approx(8, rel=0.02)


def test_cleared_noise_is_what_least_squares_leave_even_where_two_maps_are_one():
    generator = np.random.default_rng(3)
    maps = generator.random((500, 8)) * (generator.random((500, 8)) < 0.2)
    maps[:, 7] = maps[:, 6]
    noise = generator.standard_normal((3, 500)).astype(np.float32)
    fit = np.linalg.lstsq(maps, noise.T, rcond=None)[0]
    cleared = np.stack(list(clear_noise(iter(noise), csr_array(maps.astype(np.float32)))))
    np.testing.assert_allclose(cleared, noise - (maps @ fit).T, atol=1e-4)
