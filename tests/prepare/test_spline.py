"""Interpolation of volumes against scipy, which knows nothing of matrices."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from slimbrain_app.prepare import grid, spline
from slimbrain_app.prepare.grid import Grid, model_grid, template_brain


def grid_of(shape, step, origin, turn=0.0):
    affine = np.diag([*np.broadcast_to(step, 3).astype(float), 1.0])
    affine[:3, 3] = origin
    cos, sin = np.cos(turn), np.sin(turn)
    about_x = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]])
    about_z = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    return Grid(shape, about_z @ about_x @ affine)


SOURCES = {
    "shifted": grid_of((97, 115, 97), 2, (-96.9, -132.1, -78.0)),
    "3 mm": grid_of((66, 78, 65), 3, (-97.3, -133.1, -78.4)),
    "anisotropic": grid_of((50, 59, 45), (4, 4, 4.4), (-98.0, -134.0, -80.0)),
    "1 mm": grid_of((193, 229, 193), 1, (-96, -132, -78)),
    "oblique": grid_of((70, 80, 75), (3, 3, 2.8), (-100.3, -126.9, -92.1), 0.12),
}


def coordinates_in(source):
    model = model_grid()
    straight = grid.axis_coordinates(source, model)
    return straight or grid.point_coordinates(source, grid.points_of(model), model)


def brain_inside(source):
    return template_brain() & grid.points_inside(coordinates_in(source), source)


def reference(volume, source, mask):
    """Order 3, prefiltered, in float64, at the mask's voxels; the volume is (z, y, x)."""
    points = [np.broadcast_to(axis, mask.shape)[mask] for axis in coordinates_in(source)]
    return map_coordinates(volume.T.astype(float), points, order=3, mode="constant", cval=0)


def sample(source, mask, volumes):
    sampler = spline.build_sampler(source, coordinates_in(source), mask)
    values = np.full((len(volumes), np.count_nonzero(mask)), np.nan, np.float32)
    sampler.sample(volumes, values)
    return values


def volumes_of(source, count=1):
    """Anatomy of 10,000 and, as fMRI has it, a hundredth of that in noise."""
    random = np.random.default_rng(1)
    anatomy = random.normal(10_000, 1_000, source.shape[::-1])
    noise = random.normal(0, 100, (count, *source.shape[::-1]))
    return (anatomy + noise).astype(np.float32)


@pytest.mark.parametrize("name", SOURCES)
def test_samples_agree_with_scipy_within_a_thousandth_of_the_noise(name):
    source = SOURCES[name]
    mask = brain_inside(source)
    volumes = volumes_of(source)
    values = sample(source, mask, volumes)[0]
    assert np.count_nonzero(mask) > 200_000
    assert np.abs(values - reference(volumes[0], source, mask)).max() < 1e-3 * 100


def test_parallel_axes_are_sampled_separably_and_oblique_ones_are_not():
    kinds = {
        name: type(spline.build_sampler(source, coordinates_in(source), brain_inside(source)))
        for name, source in SOURCES.items()
        if name in ("3 mm", "oblique")
    }
    assert kinds == {"3 mm": spline.Separable, "oblique": spline.Scattered}


def test_points_on_the_lattice_are_picked_unchanged():
    source = grid_of((97, 115, 97), 2, (-96.5, -132.5, -78.5))
    mask = template_brain()
    volumes = volumes_of(source)
    values = sample(source, mask, volumes)[0]
    cropped = volumes[0].T[1:97, 10:106, 0:96]
    np.testing.assert_array_equal(values, cropped[mask])


@pytest.mark.parametrize("name", ["3 mm", "oblique"])
def test_values_of_a_volume_do_not_depend_on_its_batch(name):
    source = SOURCES[name]
    mask = brain_inside(source)
    volumes = volumes_of(source, 5)
    alone = [sample(source, mask, volume[None])[0] for volume in volumes]
    np.testing.assert_array_equal(sample(source, mask, volumes), alone)


def test_constant_stays_constant_to_the_edge_of_the_source():
    source = grid_of((40, 45, 40), 4, (-80, -100, -70))
    mask = brain_inside(source)
    volume = np.full((1, *source.shape[::-1]), 7, np.float32)
    values = sample(source, mask, volume)
    np.testing.assert_allclose(values, 7, rtol=1e-6)


def test_matrix_passes_through_samples():
    np.testing.assert_allclose(
        spline.interpolation_matrix(9, np.arange(9.0)), np.eye(9), atol=1e-12
    )


def test_matrix_reproduces_a_cubic_far_from_the_ends():
    samples = np.polyval([0.02, -0.3, 1, 5], np.arange(60.0))
    points = np.linspace(25, 35, 31)
    values = spline.interpolation_matrix(60, points) @ samples
    np.testing.assert_allclose(values, np.polyval([0.02, -0.3, 1, 5], points), atol=1e-4)


def test_matrix_moves_points_outside_by_rounding_to_the_end():
    matrix = spline.interpolation_matrix(5, np.array([-1e-9, 4 + 1e-9]))
    np.testing.assert_allclose(matrix, np.eye(5)[[0, 4]], atol=1e-12)


def test_bands_of_three_axes_are_three_matrix_products():
    random = np.random.default_rng(0)
    volume = random.normal(size=(40, 50, 30)).astype(np.float32)
    x, y, z = (
        spline.interpolation_matrix(length, random.uniform(0, length - 1, count))
        for length, count in ((30, 70), (50, 33), (40, 64))
    )
    products = spline.AxisProducts(volume.shape, *map(spline.split_bands, (x, y, z)))
    (whole,) = products.apply([volume])
    expected = np.einsum("ck,bj,ai,kji->cba", z, y, x, volume.astype(float), optimize=True)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
