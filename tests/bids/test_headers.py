import gzip
import os

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slimbrain_app.bids.headers import (
    describe_grid,
    read_header,
    require_series,
    same_grid,
    shift_between,
)
from slimbrain_app.errors import RunRefused

AFFINE = np.array([[0, -3, 0.2, 5], [2, 0, 0, -7], [0, 0.1, 4, 9], [0, 0, 0, 1.0]])


def refusal_of(path):
    with pytest.raises(RunRefused) as caught:
        read_header(path, "sub-01/x.nii.gz")
    assert caught.value.file == "sub-01/x.nii.gz"
    return caught.value


def write(path, content, compress=True):
    path.write_bytes(gzip.compress(content) if compress else content)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("endianness", ["<", ">"])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_headers_are_read_as_nibabel_reads_them(tmp_path, kind, endianness, name):
    header = kind.header_class(endianness=endianness)
    image = kind(np.zeros((4, 5, 6, 7), np.int16), AFFINE, header)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 720
    write(tmp_path / name, image.to_bytes(), compress=name.endswith(".gz"))
    reference = nib.load(tmp_path / name)
    read = read_header(tmp_path / name)
    assert read.shape == reference.shape
    assert np.array_equal(read.affine, reference.affine)
    assert np.allclose(read.edges, reference.header.get_zooms()[:3])
    assert read.seconds == pytest.approx(0.72)


def test_a_header_is_read_without_the_data_behind_it(tmp_path):
    data = np.random.default_rng(0).integers(0, 255, (30, 30, 30, 9), np.uint8)
    whole = gzip.compress(nib.Nifti1Image(data, AFFINE).to_bytes())
    path = tmp_path / "a.nii.gz"
    path.write_bytes(whole[: len(whole) // 10])
    assert read_header(path).shape == data.shape


def test_axes_of_length_one_after_time_are_left_out(tmp_path, make_image):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(make_image((4, 5, 6, 7, 1)))
    header = read_header(path)
    require_series(header, "a")
    assert header.shape == (4, 5, 6, 7)


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 5, 6, 7, 2)])
def test_what_is_no_series_is_refused(tmp_path, make_image, shape):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(make_image(shape))
    with pytest.raises(RunRefused, match=r"\[not-4d\].*4 x 5 x 6"):
        require_series(read_header(path), "a")


@pytest.mark.parametrize(
    ("unit", "step", "seconds"),
    [("sec", 2, 2), ("msec", 2000, 2), ("usec", 2e6, 2), ("unknown", 2, 2), ("hz", 2, 2)],
)
def test_time_is_read_with_its_unit(tmp_path, make_image, unit, step, seconds):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(make_image(tr=step, unit=unit))
    assert read_header(path).seconds == pytest.approx(seconds)


def test_plain_file_named_gz(tmp_path, make_image):
    path = write(tmp_path / "a.nii.gz", gzip.decompress(make_image()), compress=False)
    assert refusal_of(path).reason == "unreadable"


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 40, b"\0" * 1000])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_what_is_no_image_is_unreadable(tmp_path, content, name):
    assert refusal_of(write(tmp_path / name, content, compress=False)).reason == "unreadable"


@pytest.mark.parametrize("size", [10, 200, 347])
def test_a_header_cut_short_is_truncated(tmp_path, make_image, size):
    content = gzip.decompress(make_image())[:size]
    assert refusal_of(write(tmp_path / "a.nii.gz", content)).reason == "truncated"


@given(st.integers(0, 350), st.integers(0, 255))
@example(295, 127)  # A signalling NaN.
@example(40, 1)  # One dimension.
@example(76, 2)  # A sign that is none.
def test_a_damaged_header_is_refused_or_read_but_nothing_else(tmp_path_factory, place, value):
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 7), np.uint8), AFFINE)
    image.set_qform(AFFINE, code=1)
    content = bytearray(image.to_bytes())
    content[place] = value
    path = write(tmp_path_factory.getbasetemp() / "damaged.nii", bytes(content), compress=False)
    try:
        header = read_header(path)
    except RunRefused:
        return
    assert np.isfinite(header.affine).all()


def test_dangling_link_is_named(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.symlink_to("../.git/annex/objects/X/MD5E-s1--0.nii.gz")
    refusal = refusal_of(path)
    assert refusal.reason == "missing-content"
    assert "../.git/annex/objects/X/MD5E-s1--0.nii.gz" in refusal.found
    assert "datalad get sub-01/x.nii.gz" in refusal.advice


def test_an_annex_pointer_is_missing_content(tmp_path):
    path = write(tmp_path / "a.nii.gz", b"/annex/objects/MD5E-s1--0.nii.gz\n", compress=False)
    assert refusal_of(path).reason == "missing-content"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_closed_file_is_denied_with_owner_and_mode(tmp_path, make_image):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(make_image())
    path.chmod(0o200)
    refusal = refusal_of(path)
    assert refusal.reason == "denied"
    assert "mode 200" in refusal.found


def test_no_permission_is_denied(tmp_path, make_image, monkeypatch):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(make_image())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    assert refusal_of(path).reason == "denied"


def image_with(sform, sform_code, qform, qform_code):
    image = nib.Nifti1Image(np.zeros((40, 40, 40, 2), np.uint8), None)
    image.header.set_sform(sform, sform_code)
    image.header.set_qform(qform, qform_code)
    return image.to_bytes()


STRAIGHT = np.diag([2.0, 2, 2, 1])
SHIFTED = STRAIGHT + np.array([[0, 0, 0, 0.3], [0] * 4, [0] * 4, [0] * 4])


@pytest.mark.parametrize(
    ("sform_code", "qform_code", "expected"), [(4, 0, SHIFTED), (0, 1, STRAIGHT)]
)
def test_the_form_with_a_code_counts(tmp_path, sform_code, qform_code, expected):
    content = image_with(SHIFTED, sform_code, STRAIGHT, qform_code)
    path = write(tmp_path / "a.nii.gz", content)
    assert np.allclose(read_header(path).affine, expected)


def test_without_form_codes_there_is_no_geometry(tmp_path):
    path = write(tmp_path / "a.nii.gz", image_with(SHIFTED, 0, STRAIGHT, 0))
    assert refusal_of(path).reason == "no-geometry"


def test_forms_that_contradict_one_another_are_refused(tmp_path):
    path = write(tmp_path / "a.nii.gz", image_with(SHIFTED, 4, STRAIGHT, 1))
    assert refusal_of(path).reason == "bad-affine"


def test_forms_that_differ_by_rounding_are_taken(tmp_path):
    near = STRAIGHT.copy()
    near[0, 3] = 0.05
    path = write(tmp_path / "a.nii.gz", image_with(near, 4, STRAIGHT, 1))
    assert np.allclose(read_header(path).affine, near)


@pytest.mark.parametrize("sform", [np.diag([2.0, 0, 2, 1]), np.diag([2.0, np.nan, 2, 1])])
def test_an_affine_that_leads_nowhere_is_refused(tmp_path, sform):
    header = nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.uint8), None).header
    header["sform_code"] = 4
    header["srow_x"], header["srow_y"], header["srow_z"] = sform[:3]
    path = write(tmp_path / "a.nii.gz", header.binaryblock + b"\0" * 200)
    assert refusal_of(path).reason == "bad-affine"


@given(arrays(np.float64, (3, 4), elements=st.floats(-5, 5)), st.integers(0, 2))
def test_shift_is_the_farthest_corner(step, axis):
    one, other = np.eye(4), np.eye(4)
    other[:3] += step
    shape = (3, 4, 5)
    corners = np.array([[x, y, z, 1] for x in (0, 2) for y in (0, 3) for z in (0, 4)])
    farthest = max(np.linalg.norm(one @ corner - other @ corner) for corner in corners)
    assert shift_between(one, other, shape) == pytest.approx(farthest)


@pytest.mark.parametrize(
    ("mask_shape", "origin", "same"),
    [
        ((4, 5, 6), (-8, -10, -12), True),
        ((4, 5, 6, 1), (-8, -10, -12), True),
        ((4, 5, 6), (-8.05, -10, -12), True),
        ((4, 5, 6), (-8.2, -10, -12), False),
        ((4, 5, 6, 3), (-8, -10, -12), False),
        ((4, 5, 5), (-8, -10, -12), False),
    ],
)
def test_a_mask_is_on_the_grid_of_its_image(tmp_path, make_image, mask_shape, origin, same):
    (tmp_path / "bold.nii.gz").write_bytes(make_image())
    (tmp_path / "mask.nii.gz").write_bytes(make_image(mask_shape, origin=origin))
    bold, mask = read_header(tmp_path / "bold.nii.gz"), read_header(tmp_path / "mask.nii.gz")
    assert same_grid(bold, mask) is same


def test_a_grid_is_described_by_shape_edges_and_place(tmp_path, make_image):
    (tmp_path / "a.nii.gz").write_bytes(make_image())
    words = describe_grid(read_header(tmp_path / "a.nii.gz"))
    assert all(part in words for part in ("4 x 5 x 6 x 3", "4, 4, 4 mm", "-8, -10, -12"))
