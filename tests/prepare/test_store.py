"""Windows of a prepared run at model time, against the whole run at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from slimbrain_app.prepare import store
from slimbrain_app.records import PreparedRun

VOLUMES, VOXELS = 90, 60
FRAME_TIME = 0.72


@pytest.fixture
def make_prepared(tmp_path):
    """Write a prepared run whose signal is given in deviations (volumes, voxels)."""

    def make(deviations, tr=2.0, mean=None, deviation=None, places=None):
        volumes, voxels = deviations.shape
        mean = np.full(voxels, 1000.0) if mean is None else mean
        deviation = np.full(voxels, 20.0) if deviation is None else deviation
        rows = (mean + deviation * deviations).astype(np.float32)
        step = store.step_of(deviation)
        signal, _ = store.quantise(rows, mean.astype(np.float32), step)
        places = np.arange(voxels) * 1009 if places is None else places
        np.save(tmp_path / "signal.npy", signal)
        np.save(tmp_path / "scale.npy", step)
        np.save(tmp_path / "mean.npy", mean.astype(np.float32))
        np.save(tmp_path / "voxels.npy", places.astype(np.int32))
        return PreparedRun(
            folder=tmp_path,
            volumes=volumes,
            voxels=voxels,
            tr=tr,
            dummy_scans=0,
            coverage=1.0,
            mean=float(rows.mean()),
            deviation=float(rows.std()),
            constant_voxels=0,
            clipped_values=0,
            replaced_values=0,
            displacement=None,
            checksums=(),
            fingerprint="",
            notices=(),
        )

    return make


@pytest.fixture
def noise():
    """Deviations with mean 0 and deviation 1 over time in every voxel."""
    series = np.random.default_rng(0).normal(size=(VOLUMES, VOXELS))
    return (series - series.mean(axis=0)) / series.std(axis=0)


def stored(prepared):
    """What the store holds, in deviations."""
    return np.load(prepared.folder / "signal.npy") * (4 / 127)


def whole_run_spline(series, tr, frame_time):
    frames = int((len(series) - 1) * tr / frame_time + 1e-9) + 1
    position = np.arange(frames) * frame_time / tr
    return np.stack(
        [map_coordinates(column, [position], order=3, mode="mirror") for column in series.T], axis=1
    )


@pytest.mark.parametrize("tr", [2.0, 0.8, 0.72, 3.5])
@pytest.mark.parametrize("start", [0, 17])
def test_window_equals_the_spline_over_the_whole_run(make_prepared, noise, tr, start):
    prepared = make_prepared(noise, tr)
    frames = store.read_frames(prepared, start, 40, FRAME_TIME, "voxel")
    expected = whole_run_spline(stored(prepared), tr, FRAME_TIME)[start : start + 40]
    assert frames.dtype == np.float32
    np.testing.assert_allclose(frames, expected, atol=3e-6)


def test_window_at_the_end_of_the_run_equals_the_spline_too(make_prepared, noise):
    prepared = make_prepared(noise)
    count = store.count_frames(prepared, FRAME_TIME)
    frames = store.read_frames(prepared, count - 40, 40, FRAME_TIME, "voxel")
    expected = whole_run_spline(stored(prepared), 2.0, FRAME_TIME)[-40:]
    np.testing.assert_allclose(frames, expected, atol=3e-6)


def test_window_may_start_between_frames(make_prepared, noise):
    prepared = make_prepared(noise)
    frames = store.read_frames(prepared, 10.25, 5, FRAME_TIME, "voxel")
    position = (10.25 + np.arange(5)) * FRAME_TIME / 2
    expected = map_coordinates(stored(prepared)[:, 7], [position], order=3, mode="mirror")
    np.testing.assert_allclose(frames[:, 7], expected, atol=3e-6)


def test_window_reads_only_a_few_volumes_on_either_side(make_prepared, noise):
    prepared = make_prepared(noise)
    before = store.read_frames(prepared, 100, 40, FRAME_TIME, "voxel")
    signal = np.load(prepared.folder / "signal.npy")
    signal[: 36 - 13] = 0
    signal[51 + 14 :] = 0
    np.save(prepared.folder / "signal.npy", signal)
    after = store.read_frames(prepared, 100, 40, FRAME_TIME, "voxel")
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(("start", "count"), [(-1, 5), (240, 40)])
def test_nothing_is_extrapolated(make_prepared, noise, start, count):
    prepared = make_prepared(noise)
    with pytest.raises(ValueError, match="not all inside"):
        store.read_frames(prepared, start, count, FRAME_TIME, "voxel")


@pytest.mark.parametrize(
    ("volumes", "tr", "frames"), [(40, 0.72, 40), (15, 2.0, 39), (16, 2.0, 42), (101, 0.8, 112)]
)
def test_frames_fill_the_time_between_first_and_last_volume(make_prepared, volumes, tr, frames):
    prepared = make_prepared(np.zeros((volumes, 3)), tr)
    assert store.count_frames(prepared, 0.72) == frames
    assert store.interpolate(np.zeros((volumes, 3)), tr, 0.72).shape == (frames, 3)


def test_last_frame_at_the_last_volume_is_that_volume(make_prepared, noise):
    prepared = make_prepared(noise, tr=0.72)
    last = store.read_frames(prepared, VOLUMES - 1, 1, 0.72, "voxel")
    np.testing.assert_allclose(last[0], stored(prepared)[-1], atol=1e-6)


def wave(hertz, tr, volumes=400):
    return np.sin(2 * np.pi * hertz * np.arange(volumes) * tr)[:, None]


@pytest.mark.parametrize(
    ("hertz", "low", "high"), [(0.05, 0.97, 1.03), (0.1, 0.9, 1.03), (0.35, 0, 0.05)]
)
def test_frames_longer_than_volumes_hold_no_aliases(hertz, low, high):
    # Frames of 2 s can hold up to 0.25 Hz.
    frames = store.interpolate(wave(hertz, 0.72), 0.72, 2.0)
    amplitude = frames[20:-20].std() * np.sqrt(2)
    assert low <= amplitude <= high


def test_low_pass_is_the_same_in_a_window_and_over_the_whole_run(make_prepared, noise):
    prepared = make_prepared(noise, tr=0.72)
    whole = store.interpolate(stored(prepared), 0.72, 2.0)
    window = store.read_frames(prepared, 8, 12, 2.0, "voxel")
    np.testing.assert_allclose(window, whole[8:20], atol=3e-6)


def test_low_pass_keeps_a_constant_up_to_the_ends():
    frames = store.interpolate(np.full((60, 2), 5.0), 0.8, 2.0)
    np.testing.assert_allclose(frames, 5, rtol=1e-6)


def test_voxel_channel_is_in_the_voxels_own_deviations(make_prepared, noise):
    deviation = np.random.default_rng(1).uniform(5, 500, VOXELS)
    prepared = make_prepared(noise, tr=FRAME_TIME, deviation=deviation)
    frames = store.read_frames(prepared, 0, VOLUMES, FRAME_TIME, "voxel")
    np.testing.assert_allclose(frames, np.clip(noise, -4, 4), atol=0.5 * 4 / 127 + 1e-5)


def test_global_channel_is_in_deviations_of_the_run(make_prepared, noise):
    random = np.random.default_rng(1)
    mean, deviation = random.uniform(500, 1500, VOXELS), random.uniform(5, 50, VOXELS)
    prepared = make_prepared(noise, tr=FRAME_TIME, mean=mean, deviation=deviation)
    values = mean + deviation * np.clip(noise, -4, 4)
    expected = (values - prepared.mean) / prepared.deviation
    frames = store.read_frames(prepared, 0, VOLUMES, FRAME_TIME, "global")
    np.testing.assert_allclose(
        frames, expected, atol=50 * 0.5 * 4 / 127 / prepared.deviation + 1e-5
    )


def test_global_channel_is_clipped_at_ten(make_prepared):
    mean = np.array([1000.0] * 500 + [90_000.0])
    prepared = make_prepared(np.zeros((30, 501)), mean=mean)
    assert store.read_frames(prepared, 0, 5, FRAME_TIME, "global").max() == 10


def test_still_voxel_is_zero_in_the_voxel_channel(make_prepared, noise):
    deviation = np.full(VOXELS, 20.0)
    deviation[5] = 0
    prepared = make_prepared(noise, deviation=deviation)
    assert not store.read_frames(prepared, 0, 40, FRAME_TIME, "voxel")[:, 5].any()


def test_rounding_to_int8_is_half_a_step_at_most():
    random = np.random.default_rng(0)
    mean = random.uniform(5_000, 15_000, 80).astype(np.float32)
    deviation = random.uniform(1, 200, 80)
    rows = (mean + deviation * random.uniform(-3.99, 3.99, (50, 80))).astype(np.float32)
    step = store.step_of(deviation)
    levels, clipped = store.quantise(rows, mean, step)
    assert clipped == 0
    assert (np.abs(levels * step + mean - rows) <= step * 0.501 + 2e-3).all()


def test_values_beyond_four_deviations_are_clipped_and_counted():
    deviation = np.array([10.0, 10.0])
    rows = np.array([[45.0, -39.0], [-1e9, 0.0], [40.0, 41.0]], np.float32)
    levels, clipped = store.quantise(rows, np.zeros(2, np.float32), store.step_of(deviation))
    assert levels.tolist() == [[127, -124], [-127, 0], [127, 127]]
    assert clipped == 3


def test_cell_means_are_means_over_the_brain_voxels_of_a_cube(make_prepared, noise):
    random = np.random.default_rng(2)
    places = np.sort(random.choice(96**3, VOXELS, replace=False))
    places[:10] = np.arange(10) * 96  # one cube with several voxels
    places = np.unique(places)
    mean = random.uniform(500, 1500, len(places))
    prepared = make_prepared(noise[:, : len(places)], mean=mean, places=places)
    means, cells = store.cell_means(prepared)
    values = mean + 20 * stored(prepared)
    x, y, z = (axis // 8 for axis in np.unravel_index(places, (96, 96, 96)))
    owner = (x * 12 + y) * 12 + z
    expected = np.stack(
        [values[:, owner == cell].mean(axis=1) for cell in sorted(set(owner))], axis=1
    )
    assert cells.tolist() == sorted(set(owner))
    np.testing.assert_allclose(means, expected, rtol=1e-5)


def test_images_hold_mean_and_mask_at_their_places(make_prepared, noise):
    mean = np.arange(1.0, VOXELS + 1)
    places = np.arange(VOXELS) * 1009
    prepared = make_prepared(noise, mean=mean, places=places)
    image, mask = store.mean_image(prepared), store.mask_image(prepared)
    x, y, z = 7 * 1009 // 96**2, 7 * 1009 // 96 % 96, 7 * 1009 % 96
    assert image.shape == mask.shape == (96, 96, 96)
    assert image[x, y, z] == 8
    assert np.count_nonzero(mask) == VOXELS
    assert not image[~mask].any()
