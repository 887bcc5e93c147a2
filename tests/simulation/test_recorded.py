from __future__ import annotations

import nibabel
import numpy as np
import pytest

from slimbrain_app.simulation.enrolment import enrol
from slimbrain_app.simulation.recorded import read_atlas, read_series


def test_series_are_centred_and_equally_strong_without_moments(files):
    person = enrol(files.inputs, 1).volunteers[0]
    series = read_series(files.inputs, person)
    np.testing.assert_allclose(series.mean(axis=0), 0, atol=1e-12)
    expected = np.ones(12)
    expected[4] = 0
    np.testing.assert_allclose(series.std(axis=0), expected)
    recorded = files.series()["B_01"]
    for region in np.flatnonzero(expected):
        assert np.corrcoef(series[:, region], recorded[:, region])[0, 1] == pytest.approx(1)


def test_moments_set_the_strength_of_regions_relative_to_the_median(files, tmp_path):
    deviations = np.full(12, 10.0)
    deviations[[4, 5, 6, 7]] = [0, 20, 5, 1e6]
    moments = {"file_id": ["B_01", "A_02", "A_03"], "std": np.stack([deviations] * 3)}
    inputs = files.rewrite(tmp_path, moments=moments)
    series = read_series(inputs, enrol(inputs, 1).volunteers[0])
    expected = np.ones(12)
    expected[[4, 5, 6, 7]] = [0, 2, 0.5, 4]
    np.testing.assert_allclose(series.std(axis=0), expected)


def test_regions_are_counted_in_the_order_of_their_numbers(tmp_path):
    numbers = np.array([0, 7, 7, 30, 2], np.int16).reshape(5, 1, 1)
    nibabel.save(nibabel.Nifti1Image(numbers, np.eye(4)), tmp_path / "atlas.nii")
    atlas = read_atlas(tmp_path / "atlas.nii")
    np.testing.assert_array_equal(atlas.numbers.ravel(), [0, 2, 2, 3, 1])
    assert atlas.regions == 3
