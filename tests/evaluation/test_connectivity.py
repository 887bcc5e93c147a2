"""Parcel series, their cleaning and their connectivity, against loops, scipy and scikit-learn."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from nilearn.maskers import NiftiLabelsMasker
from scipy.linalg import inv, logm, sqrtm
from scipy.signal import butter, detrend, sosfiltfilt
from sklearn.covariance import ledoit_wolf

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.evaluation.atlas import Atlas, load_atlas
from slimbrain_app.evaluation.connectivity import (
    clean_series,
    connect,
    describe_cleaning,
    find_common,
    fit_connectivity,
    list_absent,
    read_parcels,
    summarise_parcels,
)
from slimbrain_app.prepare import store
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.records import PreparedRun

VOLUMES, TR = 100, 2.0
UPPER = np.triu_indices(5, 1)


@pytest.fixture
def prepare(tmp_path):
    """Write noise at places of the model grid (flat index, ascending) as a prepared run."""

    def write(places, deviation=20.0):
        draw = np.random.default_rng(0)
        mean = draw.uniform(500, 1500, len(places)).astype(np.float32)
        step = store.step_of(np.full(len(places), deviation))
        signal = draw.normal(0, 30, (VOLUMES, len(places))).clip(-127, 127).astype(np.int8)
        arrays = {"signal": signal, "scale": step, "mean": mean, "voxels": places.astype(np.int32)}
        for name, array in arrays.items():
            np.save(tmp_path / f"{name}.npy", array)
        return PreparedRun(
            folder=tmp_path,
            volumes=VOLUMES,
            voxels=len(places),
            tr=TR,
            dummy_scans=0,
            coverage=1.0,
            mean=1000.0,
            deviation=300.0,
            constant_voxels=0,
            clipped_values=0,
            replaced_values=0,
            displacement=None,
            checksums=(),
            fingerprint="",
            notices=(),
        )

    return write


def values_of(prepared):
    signal, scale, mean = (
        np.load(prepared.folder / f"{name}.npy") for name in ("signal", "scale", "mean")
    )
    return signal * scale.astype(float) + mean


@pytest.fixture
def blocks():
    """An atlas of five parcels beside one another, 12 voxels thick, that leave much free."""
    numbers = np.zeros(model_grid().shape, np.uint8)
    for number in range(1, 6):
        numbers[20 + 10 * number : 30 + 10 * number, 40:52, 40:52] = number
    return Atlas("blocks", numbers, np.array([1, 2, 3, 5, 8]), tuple("abcde"))


@pytest.fixture
def places(blocks):
    """Every third voxel in and around the parcels, none of them in the fourth."""
    region = np.zeros(model_grid().shape, bool)
    region[10:90, 36:56, 36:56] = True
    region[blocks.numbers == 4] = False
    return np.flatnonzero(region)[::3]


def test_parcel_series_are_means_over_its_voxels(prepare, blocks, places):
    prepared = prepare(places)
    series, values = read_parcels(prepared, blocks), values_of(prepared)
    assert series.shape == (VOLUMES, 5)
    for column in (0, 1, 2, 4):
        inside = [blocks.numbers.flat[place] == column + 1 for place in places]
        np.testing.assert_allclose(series[:, column], values[:, inside].mean(axis=1), rtol=1e-5)


def test_parcel_series_are_those_of_nilearn(prepare, blocks, places):
    prepared = prepare(places)
    volumes = np.zeros((*model_grid().shape, VOLUMES), np.float32)
    volumes.reshape(-1, VOLUMES)[places] = values_of(prepared).T
    box = np.s_[30:82, 36:56, 36:56]
    affine = model_grid().affine @ np.array(
        [[1, 0, 0, 30], [0, 1, 0, 36], [0, 0, 1, 36], [0, 0, 0, 1]]
    )
    numbers = np.where(blocks.numbers == 4, 0, blocks.numbers)  # Of which there is no voxel.
    masker = NiftiLabelsMasker(
        nibabel.Nifti1Image(numbers[box], affine),
        mask_img=nibabel.Nifti1Image(store.mask_image(prepared)[box].astype(np.uint8), affine),
        keep_masked_labels=False,
        standardize=None,
    )
    expected = masker.fit_transform(nibabel.Nifti1Image(volumes[box], affine))
    found = read_parcels(prepared, blocks)
    np.testing.assert_allclose(found[:, ~np.isnan(found[0])], expected, rtol=1e-5)


def test_parcel_without_a_voxel_in_the_mask_is_nan_and_named(prepare, blocks, places):
    series = read_parcels(prepare(places), blocks)
    assert np.isnan(series).all(axis=0).tolist() == [False, False, False, True, False]
    assert list_absent(series, blocks) == ["d"]


def test_atlas_beside_the_mask_gives_nan_only(prepare, blocks):
    assert np.isnan(read_parcels(prepare(np.arange(50)), blocks)).all()


def test_shipped_atlas_reads_any_run(prepare):
    atlas = load_atlas("schaefer200")
    series = read_parcels(prepare(np.flatnonzero(atlas.numbers)[::5]), atlas)
    assert series.shape == (VOLUMES, 200)
    assert list_absent(series, atlas) == []


def test_summary_is_mean_and_deviation_of_each_parcel():
    series = np.array([[1.0, 10, np.nan], [2, 10, np.nan], [6, 10, np.nan]])
    expected = [3, 10, np.nan, np.sqrt(7), 0, np.nan]
    np.testing.assert_allclose(summarise_parcels(series), expected)


def noise(seed, volumes=VOLUMES, columns=5):
    return np.random.default_rng(seed).normal(size=(volumes, columns))


def amplitude(series, hertz):
    """Return how strong a wave is in a series, ends left out."""
    turn = np.exp(2j * np.pi * hertz * TR * np.arange(len(series)))
    return abs(series[50:-50] @ turn[50:-50])


@pytest.mark.parametrize(
    ("hertz", "low", "high"), [(0.002, 0, 0.01), (0.05, 0.98, 1.02), (0.15, 0, 0.01)]
)
def test_cleaning_keeps_the_band_and_nothing_else(hertz, low, high):
    times = TR * np.arange(600)
    waves = np.sin(2 * np.pi * 0.03 * times) + np.sin(2 * np.pi * hertz * times)
    cleaned = clean_series(1000 + 5 * waves[:, None], TR)[:, 0]
    assert low <= amplitude(cleaned, hertz) / amplitude(cleaned, 0.03) <= high


def by_scipy(series, tr, confounds):
    """Detrend and filter series and confounds, regress the ones on the others, standardise."""
    band = [0.01, 0.1] if tr < 5 else 0.01
    sections = butter(5, band, "bandpass" if tr < 5 else "highpass", fs=1 / tr, output="sos")
    series, confounds = (
        sosfiltfilt(sections, detrend(table, axis=0), axis=0) for table in (series, confounds)
    )
    confounds = confounds - confounds.mean(axis=0)
    left = series - confounds @ np.linalg.lstsq(confounds, series, rcond=None)[0]
    return (left - left.mean(axis=0)) / left.std(axis=0, ddof=1)


@pytest.mark.parametrize("tr", [0.8, 2.0, 5.0, 6.0])
def test_cleaning_is_filter_then_regression_at_every_tr(tr):
    series, confounds = noise(0, 300).cumsum(axis=0), noise(1, 300, 3).cumsum(axis=0)
    expected = by_scipy(series, tr, confounds)
    np.testing.assert_allclose(clean_series(series, tr, confounds), expected, atol=1e-6)


def test_nothing_of_the_confounds_is_left():
    confounds = noise(1, columns=4).cumsum(axis=0)
    series = noise(0) + confounds @ noise(2, 4)
    cleaned = clean_series(series, TR, confounds)
    filtered = clean_series(confounds, TR)
    assert np.abs(cleaned.T @ filtered / VOLUMES).max() < 1e-6


def test_no_confounds_known_is_no_confounds_removed():
    series = noise(0)
    np.testing.assert_array_equal(
        clean_series(series, TR, np.empty((VOLUMES, 0))), clean_series(series, TR)
    )
    assert "no confounds" in describe_cleaning(TR, ())
    assert "cleaned of csf, trans_x" in describe_cleaning(TR, ("csf", "trans_x"))


def test_still_and_absent_parcels_come_out_as_nan():
    series = noise(0)
    series[:, 1], series[:, 3] = 1000, np.nan
    cleaned = clean_series(series, TR)
    assert np.isnan(cleaned).all(axis=0).tolist() == [False, True, False, True, False]
    np.testing.assert_allclose(cleaned[:, [0]], clean_series(series[:, [0]], TR))
    assert np.isnan(clean_series(series[:, [1]], TR)).all()


@pytest.mark.parametrize(
    ("volumes", "tr", "confounds"), [(33, 3.0, 0), (34, 0.7, 0), (80, 2.0, 26)]
)
def test_run_of_which_hardly_anything_would_be_left_is_refused(volumes, tr, confounds):
    with pytest.raises(RunRefused) as caught:
        clean_series(noise(0, volumes), tr, noise(1, volumes, confounds))
    assert caught.value.reason == "too-short"


@pytest.mark.parametrize(("volumes", "tr", "confounds"), [(34, 3.0, 0), (100, 2.0, 26)])
def test_run_that_is_just_long_enough_is_cleaned(volumes, tr, confounds):
    assert np.isfinite(clean_series(noise(0, volumes), tr, noise(1, volumes, confounds))).all()


def mix(seed, volumes=VOLUMES):
    """Five series of which neighbours have something in common."""
    return noise(seed, volumes) @ (np.eye(5) + np.diag([0.8] * 4, 1))


ALL = np.ones(5, bool)


def features_of(series, kind, fit=None, parcels=ALL):
    return connect(series, fit_connectivity(series if fit is None else fit, kind, parcels))


def test_correlation_is_fisher_z_of_the_upper_triangle():
    series = [mix(0), mix(1, 60), mix(2)]
    expected = [np.arctanh(np.corrcoef(one.T)[UPPER]) for one in series]
    np.testing.assert_allclose(features_of(series, "correlation"), expected)


def test_partial_correlation_is_that_of_shrunk_covariances():
    series = [mix(0), mix(1, 60)]
    expected = []
    for one in series:
        precision = inv(ledoit_wolf(one)[0])
        scale = np.sqrt(np.diag(precision))
        expected.append(np.arctanh((-precision / np.outer(scale, scale))[UPPER]))
    np.testing.assert_allclose(features_of(series, "partial"), expected)


def test_partial_correlation_does_not_see_what_goes_through_a_third():
    draw = noise(0, 20_000, 3)
    first = draw[:, 0]
    second = first + draw[:, 1]
    series = np.column_stack([first, second, second + draw[:, 2]])
    three = np.ones(3, bool)
    assert features_of([series], "correlation", parcels=three)[0, 1] > 0.5
    assert abs(features_of([series], "partial", parcels=three)[0, 1]) < 0.03


def test_tangent_is_the_matrix_logarithm_at_the_covariance_of_the_fit():
    fit, judged = [mix(0), mix(1, 60)], [mix(2), mix(3, 80)]
    reference = inv(sqrtm(ledoit_wolf(np.concatenate(fit))[0]))
    expected = [logm(reference @ ledoit_wolf(one)[0] @ reference)[UPPER] for one in judged]
    np.testing.assert_allclose(features_of(judged, "tangent", fit), expected, atol=1e-8)


@pytest.mark.parametrize("kind", ["correlation", "partial", "tangent"])
def test_features_of_one_run_do_not_depend_on_others_judged_with_it(kind):
    fitted = fit_connectivity([mix(0), mix(1)], kind, ALL)
    alone = connect([mix(2)], fitted)
    assert alone.shape == (1, 10)
    np.testing.assert_array_equal(alone[0], connect([mix(3), mix(2)], fitted)[1])


def test_parcel_that_one_run_lacks_is_left_out_for_all():
    series = [mix(0), mix(1), mix(2)]
    series[1][:, 3] = np.nan
    parcels = find_common(series)
    assert parcels.tolist() == [True, True, True, False, True]
    features = features_of(series, "correlation", parcels=parcels)
    kept = np.corrcoef(mix(0)[:, [0, 1, 2, 4]].T)[np.triu_indices(4, 1)]
    np.testing.assert_allclose(features[0], np.arctanh(kept))


def test_parcels_that_move_as_one_have_a_finite_feature():
    series = mix(0)
    series[:, 1], series[:, 2] = 3 * series[:, 0], -series[:, 0]
    features = features_of([series], "correlation")[0]
    assert np.isfinite(features).all()
    assert features[0] == -features[1] > 5


def test_no_two_parcels_in_common_is_refused():
    with pytest.raises(CallRefused) as caught:
        fit_connectivity([mix(0)], "correlation", np.arange(5) == 2)
    assert (caught.value.reason, caught.value.found) == ("atlas-bad", "1 of 5")
