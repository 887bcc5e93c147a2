from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest

from slimbrain_app.simulation.images import write_series, write_volume


def _batches(anatomy, sizes):
    """Volumes that tell x, y and z apart and change over time."""
    values = (anatomy.coordinates @ (1, 10, 20)).astype(np.float32)
    volumes = values + np.arange(sum(sizes), dtype=np.float32)[:, None]
    return np.split(volumes, np.cumsum(sizes)[:-1])


@pytest.fixture
def series(anatomy, tmp_path):
    path = tmp_path / "series.nii.gz"
    write_series(path, anatomy, _batches(anatomy, (4, 4, 3)), 11, 0.8)
    return path


def test_every_voxel_lies_where_its_coordinates_say(anatomy, series):
    image = nibabel.load(series)
    data = image.get_fdata()
    assert data.shape == (*anatomy.shape, 11)
    for index in np.argwhere(data[..., 10] != 0)[::501]:
        x, y, z = nibabel.affines.apply_affine(image.affine, index)
        assert data[(*index, 10)] == pytest.approx(x + 10 * y + 20 * z + 10, abs=1.01)


def test_header_says_space_units_and_tr(anatomy, series):
    header = nibabel.load(series).header
    assert header["pixdim"][1:5] == pytest.approx([4, 4, 4, 0.8])
    assert header.get_xyzt_units() == ("mm", "sec")
    for form, code in (header.get_sform(coded=True), header.get_qform(coded=True)):
        assert code == 4
        np.testing.assert_allclose(form, anatomy.affine)


def test_values_are_stored_as_int16_with_a_scale(series):
    raw = gzip.decompress(series.read_bytes())
    header = nibabel.Nifti1Header(raw[:348])
    assert header.get_data_dtype() == np.int16
    slope, intercept = header.get_slope_inter()
    assert slope not in (None, 1)
    stored = np.frombuffer(raw[352:], dtype=np.int16)
    np.testing.assert_allclose(
        nibabel.load(series).get_fdata().ravel(order="F"), stored * slope + intercept
    )


def test_batches_leave_no_trace(anatomy, tmp_path, series):
    other = tmp_path / "other.nii.gz"
    write_series(other, anatomy, _batches(anatomy, (1, 10)), 11, 0.8)
    assert gzip.decompress(other.read_bytes()) == gzip.decompress(series.read_bytes())


def test_file_carries_neither_time_nor_name(series):
    flags, time = series.read_bytes()[3], series.read_bytes()[4:8]
    assert (flags, time) == (0, bytes(4))


def test_a_volume_keeps_its_type(anatomy, tmp_path):
    path = tmp_path / "mask.nii.gz"
    write_volume(path, anatomy, anatomy.brain.astype(np.uint8))
    image = nibabel.load(path)
    assert image.shape == anatomy.shape
    assert image.get_data_dtype() == np.uint8
    assert np.asarray(image.dataobj).sum() == anatomy.brain.sum()
