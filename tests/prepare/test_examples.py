"""Odd inputs and native spaces among the shared examples, found as a call would find them."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from scipy.ndimage import binary_erosion, map_coordinates

from slimbrain_app.bids.discover import discover_participant
from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare import prepare_run, store
from slimbrain_app.prepare.grid import model_grid, points_of
from slimbrain_app.settings import Prepare, Select

SPAN = 39 * 0.72
SAME_AS_RAS = (
    "confounds-missing",
    "float64",
    "int16-slope-inter",
    "las",
    "mask-4d-single",
    "mask-float",
    "nan-background",
    "nifti2",
    "no-sidecar",
    "tr-disagrees",
    "tr-milliseconds",
)


@pytest.fixture
def prepare(shared_data, tmp_path):
    def prepare(dataset, participant="01"):
        found = discover_participant(shared_data / dataset, participant, Select(), Prepare())
        (run,) = found.runs
        return prepare_run(run, tmp_path / Path(dataset).name, Prepare(), SPAN)

    return prepare


def read(prepared, name):
    return np.load(prepared.folder / f"{name}.npy")


@pytest.mark.parametrize("case", SAME_AS_RAS)
def test_another_form_of_the_same_run_gives_the_same_prepared_run(prepare, shared_data, case):
    expected = json.loads((shared_data / "edge" / case / "expected.json").read_text())
    assert expected["same_as"] == "ras"
    plain, other = prepare("edge/ras"), prepare(f"edge/{case}")
    np.testing.assert_array_equal(read(other, "voxels"), read(plain, "voxels"))
    steps = read(other, "signal").astype(int) - read(plain, "signal")
    assert np.abs(steps).max() <= 1
    assert np.count_nonzero(steps) <= 1e-4 * steps.size
    np.testing.assert_allclose(read(other, "mean"), read(plain, "mean"), rtol=1e-6)
    np.testing.assert_allclose(read(other, "scale"), read(plain, "scale"), rtol=1e-5)
    assert other.tr == plain.tr == 2.0


@pytest.mark.parametrize(
    "case",
    [
        "confounds-rows",
        "mask-empty",
        "nan-volumes",
        "too-short",
        "truncated-gzip",
        "truncated-nii",
        "zero-volume",
    ],
)
def test_what_only_reading_shows_is_refused_with_its_reason(prepare, shared_data, case):
    expected = json.loads((shared_data / "edge" / case / "expected.json").read_text())
    with pytest.raises(RunRefused) as caught:
        prepare(f"edge/{case}")
    assert caught.value.reason == expected["reason"]
    for volume in expected.get("volumes", ()):
        assert str(volume) in caught.value.found


def test_constant_voxels_are_counted_on_the_runs_own_grid(prepare, shared_data):
    expected = json.loads((shared_data / "edge" / "constant-voxels" / "expected.json").read_text())
    prepared = prepare("edge/constant-voxels")
    assert prepared.constant_voxels == expected["constant_voxels"]
    assert "constant-voxels" in [notice.code for notice in prepared.notices]


@pytest.mark.parametrize("case", ["oblique", "anisotropic"])
def test_the_same_brain_on_another_grid_lands_in_the_same_place(prepare, case):
    one, other = (store.mask_image(prepare(f"edge/{name}")) for name in ("ras", case))
    assert 2 * np.count_nonzero(one & other) > 0.93 * (one.sum() + other.sum())


def plain_chain(points, folder):
    """From MNI to the BOLD reference by the two files themselves: field, affine, coregistration."""
    flip = np.array([-1.0, -1, 1])
    points = points * flip
    with h5py.File(next(folder.glob("anat/*from-T1w_to-MNI152NLin2009cAsym_*.h5"))) as file:
        affine, field = (file[f"TransformGroup/{part}/TransformParameters"][:] for part in "12")
        fixed = file["TransformGroup/2/TransformFixedParameters"][:]
    size = fixed[:3].astype(int)
    index = ((points - fixed[3:6]) @ np.reshape(fixed[9:], (3, 3)) / fixed[6:9]).T
    vectors = field.reshape(*size[::-1], 3)
    moves = [map_coordinates(vectors[..., axis], index[::-1], order=1) for axis in range(3)]
    points = points + np.stack(moves, axis=1)
    points = points @ affine[:9].reshape(3, 3).T + affine[9:]
    return points * flip


def plain_coregistration(points, folder):
    text = next(folder.glob("func/*from-boldref_to-T1w_*.txt")).read_text().splitlines()
    numbers = np.array(text[3].split(":")[1].split(), float)
    flip = np.array([-1.0, -1, 1])
    return (points * flip @ numbers[:9].reshape(3, 3).T + numbers[9:]) * flip


@pytest.mark.parametrize(("participant", "native"), [("03", True), ("04", False)])
def test_native_runs_are_sampled_once_through_all_their_transforms(
    prepare, shared_data, participant, native
):
    folder = shared_data / "native" / f"sub-{participant}"
    prepared = prepare("native", participant)
    places = read(prepared, "voxels")[::97]
    points = plain_chain(points_of(model_grid())[places], folder)
    if native:
        points = plain_coregistration(points, folder)
    image = nibabel.load(next(folder.glob("func/*desc-preproc_bold.nii.gz")))
    inverse = np.linalg.inv(image.affine)
    index = (points @ inverse[:3, :3].T + inverse[:3, 3]).T
    expected = map_coordinates(image.get_fdata()[..., 11], index, order=3)
    step, mean = read(prepared, "scale")[::97], read(prepared, "mean")[::97]
    values = read(prepared, "signal")[11, ::97] * step + mean
    error = np.abs(values - expected) / step
    assert np.quantile(error, 0.99) < 0.6
    assert prepared.coverage > 0.85


def correlate_deep_inside(one, other):
    """Correlate two mean images away from the edge, where zeros of the background shine in."""
    inside = binary_erosion(store.mask_image(one) & store.mask_image(other), iterations=6)
    assert np.count_nonzero(inside) > 50_000
    return np.corrcoef(store.mean_image(one)[inside], store.mean_image(other)[inside])[0, 1]


def test_native_and_t1w_runs_of_the_same_brain_agree(prepare):
    assert correlate_deep_inside(prepare("native", "03"), prepare("native", "04")) > 0.97
