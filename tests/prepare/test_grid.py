"""The model grid and other grids."""

from __future__ import annotations

import numpy as np
import pytest
from nibabel.affines import apply_affine
from nibabel.orientations import apply_orientation, inv_ornt_aff

from slimbrain_app.prepare import grid
from slimbrain_app.prepare.grid import Grid

# TemplateFlow's and fMRIPrep's res-2 of the template.
RES_2 = Grid(
    (97, 115, 97), np.array([[2.0, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]])
)


def stored_as(volume, affine, orientation):
    return (
        apply_orientation(volume, orientation),
        affine @ inv_ornt_aff(orientation, volume.shape),
    )


def test_template_brain_is_not_cut_by_the_model_grid():
    brain = grid.template_brain()
    margins = [(int(np.min(axis)), 95 - int(np.max(axis))) for axis in np.nonzero(brain)]
    assert np.count_nonzero(brain) == 237_473
    assert margins == [(11, 12), (2, 2), (3, 15)]


@pytest.mark.parametrize(("edge", "cubes"), [(4, 4523), (8, 714), (16, 130), (32, 27)])
def test_template_brain_fills_cubes(edge, cubes):
    brain = grid.template_brain()
    n = 96 // edge
    filled = brain.reshape(n, edge, n, edge, n, edge).any(axis=(1, 3, 5))
    assert np.count_nonzero(filled) == cubes


def test_template_brain_leans_to_neither_side():
    brain = grid.template_brain()
    x = np.nonzero(brain)[0] * 2.0 - 94.5
    assert abs(x.mean()) < 1


def test_model_grid_is_a_crop_of_res_2():
    coordinates = grid.axis_coordinates(RES_2, grid.model_grid())
    assert grid.on_lattice(coordinates)
    firsts = [int(axis.ravel()[0]) for axis in coordinates]
    assert firsts == [1, 10, 0]


def test_hundredth_of_a_millimetre_is_not_the_same_grid():
    shifted = RES_2.affine.copy()
    shifted[0, 3] += 0.01
    coordinates = grid.axis_coordinates(Grid(RES_2.shape, shifted), grid.model_grid())
    assert not grid.on_lattice(coordinates)


def test_one_millimetre_grid_holds_model_grid_points_between_its_voxels():
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -96, -132, -78
    coordinates = grid.axis_coordinates(Grid((193, 229, 193), affine), grid.model_grid())
    np.testing.assert_allclose([axis.ravel()[0] for axis in coordinates], [1.5, 19.5, -0.5])


def test_view_turns_every_orientation_to_the_same_volume(orientations):
    volume = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
    affine = np.array([[3.0, 0, 0, -7], [0, 2, 0, 5], [0, 0, 4, 1], [0, 0, 0, 1]])
    for orientation in orientations:
        stored, stored_affine = stored_as(volume, affine, orientation)
        turned, view = grid.canonical(Grid(stored.shape, stored_affine))
        np.testing.assert_array_equal(view.turn(stored), volume)
        assert turned.shape == volume.shape
        np.testing.assert_allclose(turned.affine, affine)


def test_view_shows_file_order_as_z_y_x():
    stored = np.arange(2 * 3 * 4 * 5).reshape(2, 5, 4, 3)
    _, view = grid.canonical(Grid((3, 4, 5), np.eye(4)))
    np.testing.assert_array_equal(view.apply(stored), stored)


def test_crop_keeps_places():
    affine = np.array([[3.0, 0.2, 0, -7], [0, 2, 0, 5], [0.1, 0, 4, 1], [0, 0, 0, 1]])
    whole, view = grid.canonical(Grid((8, 9, 10), affine))
    box = (slice(2, 7), slice(0, 9), slice(3, 5))
    coordinates = (np.array(4.0), np.array(5.0), np.array(4.0))
    cropped, cropped_view, moved = grid.crop(whole, view, coordinates, box)
    volume = np.arange(720).reshape(8, 9, 10)
    shown = cropped_view.apply(volume.T[None])[0].T
    assert shown.shape == cropped.shape == (5, 9, 2)
    np.testing.assert_allclose(
        apply_affine(cropped.affine, moved), apply_affine(whole.affine, coordinates)
    )
    assert shown[tuple(int(axis) for axis in moved)] == volume[4, 5, 4]


def test_parallel_axes_are_told_from_oblique_ones():
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.001), -np.sin(0.001)], [np.sin(0.001), np.cos(0.001)]]
    model = grid.model_grid()
    assert grid.axis_coordinates(RES_2, model) is not None
    assert grid.axis_coordinates(Grid(RES_2.shape, turned @ RES_2.affine), model) is None


def test_point_coordinates_agree_with_axis_coordinates():
    model = grid.model_grid()
    axes = grid.axis_coordinates(RES_2, model)
    points = grid.point_coordinates(RES_2, grid.points_of(model), model)
    for axis, point in zip(axes, points, strict=True):
        np.testing.assert_allclose(point, np.broadcast_to(axis, model.shape), atol=1e-9)


def test_points_of_grid_are_in_c_order():
    small = Grid((2, 3, 4), RES_2.affine)
    expected = [apply_affine(RES_2.affine, index) for index in np.ndindex(2, 3, 4)]
    np.testing.assert_allclose(grid.points_of(small), expected)


def test_point_between_two_voxels_belongs_to_the_lower_one():
    nearest = grid.nearest_voxels((np.array([0.5, 0.5 + 1e-7]), np.array(1.0), np.array(1.51)))
    assert nearest[0].tolist() == [0, 0]
    assert (int(nearest[1]), int(nearest[2])) == (1, 2)


def test_mask_holds_points_up_to_its_voxels_faces():
    mask = np.ones((2, 1, 1), bool)
    x = np.array([-0.6, -0.4, 0.0, 1.4, 1.6])[:, None, None]
    zero = np.zeros((1, 1, 1))
    assert grid.sample_mask(mask, (x, zero, zero)).ravel().tolist() == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_points_beyond_the_outermost_centres_are_not_inside():
    source = Grid((3, 1, 1), np.eye(4))
    x = np.array([-0.1, -1e-7, 0.0, 2.0, 2.1])[:, None, None]
    zero = np.zeros((1, 1, 1))
    inside = grid.points_inside((x, zero, zero), source).ravel()
    assert inside.tolist() == [False, True, True, True, False]


def test_coverage_is_the_share_of_the_template():
    brain = grid.template_brain()
    half = brain.copy()
    half[:, :, ::2] = False
    assert grid.template_coverage(brain) == 1
    assert grid.template_coverage(half) == pytest.approx(0.5, abs=0.01)
    assert grid.template_coverage(~brain) == 0
