from __future__ import annotations

import numpy as np
import pytest
from nilearn.image import resample_to_img

from slimbrain_app.simulation.parcels import share_voxels, weigh_parcels
from slimbrain_app.simulation.recorded import read_atlas


@pytest.fixture(scope="module")
def atlas(files):
    return read_atlas(files.inputs.atlas)


def locate(anatomy, atlas_image):
    """Return the region of each voxel's centre, as nilearn finds it."""
    import nibabel

    grid = nibabel.Nifti1Image(np.zeros(anatomy.shape, np.int16), anatomy.affine)
    image = resample_to_img(
        atlas_image, grid, interpolation="nearest", force_resample=True, copy_header=True
    )
    return np.asarray(image.dataobj).ravel(order="F")[anatomy.voxels]


def test_voxels_show_their_own_region_most_wherever_the_axes_run(anatomy, atlas, files):
    import nibabel

    own = locate(anatomy, nibabel.load(files.inputs.atlas))
    shares = share_voxels(anatomy, atlas).toarray()
    inside = shares.max(axis=1) > 0.6
    assert inside.sum() > 1000
    np.testing.assert_array_equal(shares[inside].argmax(axis=1) + 1, own[inside])


def test_shares_add_up_to_one_inside_and_fade_outside(anatomy, atlas):
    total = share_voxels(anatomy, atlas).sum(axis=1)
    assert total.max() == pytest.approx(1, abs=1e-3)
    inverse = np.linalg.inv(atlas.affine)
    places = anatomy.coordinates @ inverse[:3, :3].T + inverse[:3, 3]
    present = np.argwhere(atlas.numbers > 0)
    # Of 4 to 5 mm each; the Gaussian is cut off after 7.6 mm.
    deep = np.all((places > present.min(0) + 2.5) & (places < present.max(0) - 2.5), axis=1)
    far = np.any((places < present.min(0) - 4) | (places > present.max(0) + 4), axis=1)
    np.testing.assert_allclose(total[deep], 1, atol=1e-3)
    assert deep.sum() > 100 and not total[far].any()


def test_neighbours_blend_up_to_half_and_half_at_their_border(anatomy, atlas):
    shares = share_voxels(anatomy, atlas).toarray()
    two = np.sort(shares, axis=1)[:, -2:]
    mixed = (shares.sum(axis=1) > 0.99) & (two[:, 0] > 0.05)
    assert mixed.sum() > 500
    assert 0.4 < two[mixed, 0].max() <= 0.5


def test_only_grey_matter_shows_a_signal(anatomy, atlas):
    weights = weigh_parcels(anatomy, atlas)
    strength = np.asarray(abs(weights).sum(axis=1)) / anatomy.rest
    assert not strength[anatomy.grey == 0].any()
    inside = share_voxels(anatomy, atlas).sum(axis=1) > 0.9
    np.testing.assert_allclose(strength[inside], anatomy.grey[inside], rtol=1e-3)
