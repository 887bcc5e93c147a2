"""Reading a file once: the numbers, the checksum, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import os
import time

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare import reading
from slimbrain_app.prepare.reading import open_series, read_mask

SHAPE = (7, 6, 5, 9)
AFFINE = np.diag([-3.0, 3, 3, 1])
AN_HOUR = 3600


def series_file(folder, name="bold.nii.gz", dtype="<i2", kind=nibabel.Nifti1Image, shape=SHAPE):
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    image = kind(data, AFFINE)
    image.header.set_data_dtype(dtype)
    if np.dtype(dtype).byteorder == ">":
        image = kind(data, AFFINE, image.header.as_byteswapped(">"))
    image.set_sform(AFFINE, 1)
    path = folder / name
    image.to_filename(path)
    return path


def make_old(path):
    hour_ago = time.time() - AN_HOUR
    os.utime(path, (hour_ago, hour_ago))
    return path


def batches_of(series, first=0):
    buffers = [series.header.make_buffer() for _ in range(2)]
    return [batch.copy() for batch in series.batches(first, buffers)]


def read_all(path, first=0):
    """All volumes as the file holds them, in the order (i, j, k, volume), and the checksum."""
    with open_series(path, path.name) as series:
        volumes = np.concatenate(batches_of(series, first))
        return volumes.T, series.header, series.sha256


def refusal_of(path):
    with pytest.raises(RunRefused) as caught:
        read_all(path)
    assert caught.value.file == path.name
    return caught.value


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<u2", "<u1", "<i4", "<f4", ">f4", "<f8"])
def test_numbers_are_those_that_nibabel_reads(tmp_path, name, dtype):
    path = series_file(tmp_path, name, dtype)
    volumes, header, _ = read_all(path)
    np.testing.assert_array_equal(volumes, np.asanyarray(nibabel.load(path).dataobj))
    assert header.dtype == np.dtype(dtype)
    assert (header.grid.shape, header.volumes) == (SHAPE[:3], SHAPE[3])
    np.testing.assert_array_equal(header.grid.affine, AFFINE)


def test_nifti_2_is_read(tmp_path):
    path = series_file(tmp_path, kind=nibabel.Nifti2Image)
    np.testing.assert_array_equal(read_all(path)[0], np.asanyarray(nibabel.load(path).dataobj))


def test_header_extensions_are_skipped(tmp_path):
    path = series_file(tmp_path)
    image = nibabel.load(path)
    image = nibabel.Nifti1Image(np.asanyarray(image.dataobj), AFFINE, image.header)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 1000))
    image.to_filename(path)
    np.testing.assert_array_equal(read_all(path)[0], np.asanyarray(image.dataobj))


def test_slope_and_intercept_are_those_of_the_header(tmp_path):
    path = tmp_path / "bold.nii"
    data = np.random.default_rng(0).normal(size=SHAPE)
    image = nibabel.Nifti1Image(data, AFFINE)
    image.header.set_data_dtype(np.int16)
    image.to_filename(path)
    volumes, header, _ = read_all(path)
    values = volumes * header.slope + header.inter
    np.testing.assert_allclose(values, nibabel.load(path).get_fdata(), rtol=1e-6)


def test_single_fifth_axis_is_a_series(tmp_path):
    path = series_file(tmp_path, shape=(*SHAPE, 1))
    assert read_all(path)[0].shape == SHAPE


@pytest.mark.parametrize("first", [1, 8])
def test_leading_volumes_are_left_out(tmp_path, first):
    path = series_file(tmp_path)
    expected = np.asanyarray(nibabel.load(path).dataobj)[..., first:]
    np.testing.assert_array_equal(read_all(path, first)[0], expected)


def test_size_of_batches_does_not_matter(tmp_path, monkeypatch):
    path = series_file(tmp_path)
    whole, _, _ = read_all(path)
    monkeypatch.setattr(reading, "_BATCH_BYTES", 2 * 7 * 6 * 5 * 2)
    with open_series(path, "bold") as series:
        batches = batches_of(series)
    assert [len(batch) for batch in batches] == [2, 2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate(batches).T, whole)


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
def test_checksum_covers_every_byte(tmp_path, name):
    path = series_file(tmp_path, name)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_all(path)[2] == expected
    assert read_all(path, first=3)[2] == expected


def test_gzip_of_several_members_is_one_file(tmp_path):
    path = series_file(tmp_path)
    content = gzip.decompress(path.read_bytes())
    whole, _, _ = read_all(path)
    path.write_bytes(gzip.compress(content[:1000]) + gzip.compress(content[1000:]))
    np.testing.assert_array_equal(read_all(path)[0], whole)


@pytest.mark.parametrize("shape", [SHAPE[:3], (*SHAPE, 2)])
def test_other_axes_than_one_of_time_are_refused(tmp_path, shape):
    error = refusal_of(series_file(tmp_path, shape=shape))
    assert error.reason == "not-4d"
    assert " x ".join(map(str, shape)) in error.found


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@settings(max_examples=25)
@given(share=st.floats(0.5, 0.999))
def test_file_that_ends_early_is_truncated(tmp_path_factory, name, share):
    path = series_file(tmp_path_factory.mktemp("cut"), name, shape=(20, 20, 20, 9))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    error = refusal_of(make_old(path))
    assert error.reason == "truncated"
    assert error.expected.startswith("9 volumes")


def test_truncated_file_says_how_many_volumes_it_has(tmp_path):
    path = series_file(tmp_path, "bold.nii")
    path.write_bytes(path.read_bytes()[: 352 + int(4.6 * 7 * 6 * 5 * 2)])
    assert "after 4 whole volumes" in refusal_of(make_old(path)).found


def test_young_file_that_ends_early_is_still_written(tmp_path):
    path = series_file(tmp_path, shape=(20, 20, 20, 9))
    path.write_bytes(path.read_bytes()[:-500])
    assert refusal_of(path).reason == "still-written"


def test_young_file_that_is_whole_is_read(tmp_path):
    assert read_all(series_file(tmp_path))[0].shape == SHAPE


def test_file_that_changes_while_it_is_read_is_still_written(tmp_path):
    path = make_old(series_file(tmp_path))
    with open_series(path, "bold") as series:
        path.touch()
        with pytest.raises(RunRefused) as caught:
            batches_of(series)
    assert caught.value.reason == "still-written"
    assert caught.value.exit_code == 75


def test_file_that_is_replaced_while_it_is_read_is_still_written(tmp_path):
    path = series_file(tmp_path)
    other = series_file(tmp_path, "other.nii.gz")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    with open_series(path, "bold") as series:
        other.replace(path)
        with pytest.raises(RunRefused) as caught:
            batches_of(series)
    assert caught.value.reason == "still-written"


@pytest.mark.parametrize(
    "content",
    [b"", b"no gzip at all" * 100, gzip.compress(b""), gzip.compress(b"x" * 5000)],
    ids=["empty", "no gzip", "gzip of nothing", "gzip of text"],
)
def test_what_is_no_nifti_is_unreadable(tmp_path, content):
    path = tmp_path / "bold.nii.gz"
    path.write_bytes(content)
    assert refusal_of(make_old(path)).reason == "unreadable"


def test_damaged_byte_is_noticed_by_the_gzip_checksum(tmp_path):
    path = series_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(content)
    assert refusal_of(make_old(path)).reason == "unreadable"


def test_link_that_leads_nowhere_is_missing_content(tmp_path):
    path = tmp_path / "bold.nii.gz"
    path.symlink_to(tmp_path / ".git" / "annex" / "objects" / "bold.nii.gz")
    assert refusal_of(path).reason == "missing-content"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_denied(tmp_path):
    path = series_file(tmp_path)
    path.chmod(0)
    assert refusal_of(path).reason == "denied"


def mask_file(folder, values):
    path = folder / "mask.nii.gz"
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)
    return path


def test_file_from_the_future_that_ends_early_is_truncated(tmp_path):
    """It would be waited for, for ever."""
    path = series_file(tmp_path, shape=(20, 20, 20, 9))
    path.write_bytes(path.read_bytes()[:-500])
    os.utime(path, (time.time() + AN_HOUR,) * 2)
    assert refusal_of(path).reason == "truncated"


def test_mask_is_cut_at_a_half(tmp_path):
    path = mask_file(tmp_path, np.array([[[0.0, 0.5, 0.51, 1.0]]], np.float32))
    mask, grid = read_mask(path, "mask")
    assert mask.ravel().tolist() == [False, False, True, True]
    assert grid.shape == (1, 1, 4)


def test_mask_may_have_one_volume_in_a_fourth_axis(tmp_path):
    mask, _ = read_mask(mask_file(tmp_path, np.ones((2, 3, 4, 1), np.uint8)), "mask")
    assert mask.shape == (2, 3, 4)


def test_mask_of_several_volumes_is_refused(tmp_path):
    path = mask_file(tmp_path, np.ones((2, 3, 4, 2), np.uint8))
    with pytest.raises(RunRefused) as caught:
        read_mask(path, "mask")
    assert caught.value.reason == "mask-mismatch"


def test_no_flipped_bit_gives_another_mask(tmp_path):
    values = np.random.default_rng(0).random((20, 30, 40)) > 0.5
    path = mask_file(tmp_path, values.astype(np.uint8))
    content, seen = path.read_bytes(), 0
    for bit in range(80, 8 * len(content), 97):  # Behind gzip's own header.
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert np.array_equal(read_mask(path, "mask")[0], values)
        except RunRefused as refusal:
            assert refusal.reason == "unreadable"
            seen += 1
    assert seen > 100


def test_damaged_mask_is_unreadable(tmp_path):
    path = mask_file(tmp_path, np.ones((20, 30, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunRefused) as caught:
        read_mask(path, "mask")
    assert caught.value.reason == "unreadable"
