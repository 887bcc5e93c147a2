from __future__ import annotations

import importlib.resources

import nibabel
import numpy as np
import pytest

from slimbrain_app.simulation.anatomy import load_anatomy


@pytest.fixture(scope="module")
def fine():
    return load_anatomy(2.0)


def test_at_2_mm_the_grid_is_that_of_fmriprep(fine):
    assert fine.shape == (97, 115, 97)
    np.testing.assert_array_equal(nibabel.affines.voxel_sizes(fine.affine), 2)
    np.testing.assert_array_equal(fine.affine[:3, 3], (-96.5, -132.5, -78.5))


def test_brain_is_nearly_that_of_the_template(fine):
    packed = importlib.resources.files("slimbrain_app").joinpath("data/template_brain.npy")
    with packed.open("rb") as stream:
        template = np.unpackbits(np.load(stream)).reshape(96, 96, 96).astype(bool)
    brain = fine.fill_volumes(fine.brain).T[1:97, 10:106, 0:96]
    overlap = 2 * (brain & template).sum() / (brain.sum() + template.sum())
    assert overlap > 0.95


@pytest.mark.parametrize("voxel_size", [2.5, 3.0, 4.0, 6.0])
def test_any_voxel_size_covers_the_whole_brain(voxel_size, fine):
    coarse = load_anatomy(voxel_size)
    volume = coarse.brain.sum() * voxel_size**3
    assert volume == pytest.approx(fine.brain.sum() * 8, rel=0.02)
    assert coarse.coordinates.min(axis=0) == pytest.approx(fine.coordinates.min(axis=0), abs=6)
    assert coarse.coordinates.max(axis=0) == pytest.approx(fine.coordinates.max(axis=0), abs=6)


def test_tissues_lie_where_anatomists_know_them(anatomy):
    def nearest(point):
        return np.linalg.norm(anatomy.coordinates - point, axis=1).argmin()

    assert anatomy.white[nearest((-28, -20, 34))] > 0.9  # corona radiata
    assert anatomy.grey[nearest((-12, -18, 8))] > 0.5  # thalamus
    assert anatomy.fluid[nearest((-6, 12, 12))] > 0.3  # lateral ventricle


def test_coordinates_follow_the_affine(anatomy):
    indices = np.argwhere(anatomy.fill_volumes(anatomy.rest).T > 0)
    expected = nibabel.affines.apply_affine(anatomy.affine, indices)
    order = np.lexsort(expected.T)
    np.testing.assert_allclose(
        anatomy.coordinates[np.lexsort(anatomy.coordinates.T)], expected[order]
    )


def test_what_is_filled_in_is_picked_out_again(anatomy):
    values = np.random.default_rng(0).standard_normal((2, len(anatomy.voxels)))
    np.testing.assert_array_equal(anatomy.pick_voxels(anatomy.fill_volumes(values)), values)
