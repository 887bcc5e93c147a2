"""A run becomes a prepared run: where it lands, what is counted, what is refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from scipy.ndimage import map_coordinates
from threadpoolctl import threadpool_limits

from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare import prepare_run, rows, store
from slimbrain_app.prepare.grid import model_grid, template_brain
from slimbrain_app.records import RepetitionTime
from slimbrain_app.settings import Prepare

# Every run here is coarse, and few have confounds.
ROUTINE = ("voxel-size", "no-confounds")
RES_2_SHAPE = (97, 115, 97)
RES_2_AFFINE = np.array([[2.0, 0, 0, -96.5], [0, 2, 0, -132.5], [0, 0, 2, -78.5], [0, 0, 0, 1]])


def prepare(run, minimum_seconds=0.0, **settings):
    return prepare_run(run, run.dataset / "prepared", Prepare(**settings), minimum_seconds)


def read(prepared, name):
    return np.load(prepared.folder / f"{name}.npy")


def values_of(prepared):
    return read(prepared, "signal").astype(float) * read(prepared, "scale") + read(prepared, "mean")


def refusal_of(run, minimum_seconds=0.0, **settings):
    with pytest.raises(RunRefused) as caught:
        prepare(run, minimum_seconds, **settings)
    assert not (run.dataset / "prepared").exists()
    assert not list(run.dataset.glob(".slimbrain-*"))
    return caught.value


def codes(prepared):
    return [notice.code for notice in prepared.notices if notice.code not in ROUTINE]


def reference(volume, mask, affine):
    """Scipy's order-3 values and the nearest-neighbour mask on the model grid."""
    mapping = np.linalg.inv(affine) @ model_grid().affine
    points = np.indices((96, 96, 96)).reshape(3, -1)
    index = mapping[:3, :3] @ points + mapping[:3, 3:]
    inside = map_coordinates(mask.astype(np.uint8), index, order=0, mode="constant") > 0
    return map_coordinates(volume, index[:, inside], order=3, mode="constant"), inside


@pytest.fixture
def coarse_series(coarse_mask, bold_like):
    return bold_like(coarse_mask, 6)


@pytest.mark.parametrize("turn", [0.0, 0.1])
def test_values_are_scipys_on_straight_and_oblique_grids(make_run, turn, brain_on, bold_like):
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.array([[4.0, 0, 0, -100.7], [0, 4, 0, -135.2], [0, 0, 4, -85.3], [0, 0, 0, 1]])
    affine = np.array([[1, 0, 0, 0], [0, cos, -sin, 0], [0, sin, cos, 0], [0, 0, 0, 1]]) @ affine
    mask = brain_on((52, 62, 52), affine)
    series = bold_like(mask, 3)
    prepared = prepare(make_run(series.astype(np.float32), mask, affine))
    expected, inside = reference(series[..., 1], mask, affine)
    np.testing.assert_array_equal(read(prepared, "voxels"), np.flatnonzero(inside))
    error = np.abs(values_of(prepared)[1] - expected) / read(prepared, "scale")
    assert np.quantile(error, 0.999) < 0.51


def turn_about(axis, angle):
    """A rotation by an angle about an axis, by Rodrigues' formula."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def draw_grid(seed, orientations):
    """A grid around the template's brain: edges of 3 to 7 mm, any orientation, often oblique."""
    draw = np.random.default_rng(seed)
    angle = draw.choice([0, draw.uniform(0.05, 0.5)])
    directions = turn_about(draw.normal(size=3), angle) @ np.diag(draw.uniform(3, 7, 3))
    edges = np.linalg.norm(directions, axis=0)
    shape = np.ceil((220 + 100 * angle) / edges).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = directions
    centre = np.array([0.0, -18, 16]) + draw.uniform(-3, 3, 3)
    affine[:3, 3] = centre - directions @ ((shape - 1) / 2)
    orientation = orientations[draw.integers(48)]
    stored = tuple(shape[np.argsort(orientation[:, 0])])
    return stored, affine @ inv_ornt_aff(orientation, tuple(shape)), draw


@pytest.mark.parametrize("seed", range(6))
def test_any_grid_reaches_the_model_grid(make_run, brain_on, orientations, seed):
    """What rises evenly over the head does so on the model grid, wherever the voxels were."""
    shape, affine, draw = draw_grid(seed, orientations)
    slope, change = draw.normal(0, 3, 3), draw.normal(0, 3, 3)
    places = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    courses = np.array([-1.0, 0, 1, 0, 2, -2])
    series = (10_000 + places @ slope)[..., None] + (300 + places @ change)[..., None] * courses
    prepared = prepare(make_run(series.astype(np.float32), brain_on(shape, affine), affine))
    assert prepared.coverage > 0.9
    index = np.array(np.unravel_index(read(prepared, "voxels"), (96, 96, 96))).T
    points = index * 2.0 + [-94.5, -112.5, -78.5]
    np.testing.assert_allclose(read(prepared, "mean"), 10_000 + points @ slope, atol=0.5)
    expected = (10_000 + points @ slope) + np.outer(courses, 300 + points @ change)
    error = np.abs(values_of(prepared) - expected)
    assert (error < read(prepared, "scale") + 0.5).all()


def test_res_2_is_cropped_not_interpolated(make_run, brain_on, bold_like):
    mask = brain_on(RES_2_SHAPE, RES_2_AFFINE)
    series = bold_like(mask, 3)
    prepared = prepare(make_run(series.astype(np.int16), mask, RES_2_AFFINE))
    brain = template_brain()
    cropped = series[1:97, 10:106, 0:96][brain].T
    np.testing.assert_array_equal(read(prepared, "voxels"), np.flatnonzero(brain))
    np.testing.assert_allclose(read(prepared, "mean"), cropped.mean(axis=0), rtol=1e-6)
    error = np.abs(values_of(prepared) - cropped)
    assert (error <= read(prepared, "scale") * 0.501 + 2e-3).all()


def test_left_stays_left_in_48_orientations(
    make_run, coarse_mask, coarse_series, coarse_affine, orientations
):
    coarse_series[:8] += 3_000 * coarse_mask[:8, ..., None]
    coarse_series[:, :9] += 1_000 * coarse_mask[:, :9, :, None]
    coarse_series[:, :, :7] -= 2_000 * coarse_mask[:, :, :7, None]
    plain = prepare(make_run(coarse_series.astype(np.int16), coarse_mask, coarse_affine))
    assert len(orientations) == 48
    image = store.mean_image(plain)
    assert image[20, 48, 40] > image[75, 48, 40] + 2_000
    for orientation in orientations:
        stored, stored_mask = (
            np.ascontiguousarray(apply_orientation(array, orientation))
            for array in (coarse_series.astype(np.int16), coarse_mask)
        )
        affine = coarse_affine @ inv_ornt_aff(orientation, coarse_mask.shape)
        turned = prepare(make_run(stored, stored_mask, affine))
        for name in ("voxels", "signal", "scale", "mean"):
            np.testing.assert_array_equal(read(turned, name), read(plain, name))


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", ">i2", "<u2", "<i4"])
def test_same_values_of_any_type_give_the_same_run(make_coarse, coarse_series, dtype):
    plain = prepare(make_coarse(coarse_series.astype(np.int16)))
    other = prepare(make_coarse(coarse_series.astype(dtype)))
    np.testing.assert_array_equal(read(other, "signal"), read(plain, "signal"))


def test_mask_of_a_finer_grid_of_the_same_space_is_taken_over(
    make_coarse, coarse_series, brain_on, write_image
):
    run = make_coarse(coarse_series.astype(np.int16))
    plain = prepare(run)
    fine = brain_on(RES_2_SHAPE, RES_2_AFFINE).astype(np.uint8)
    write_image(run.mask, fine, RES_2_AFFINE)
    other = prepare(run)
    shared = np.intersect1d(read(plain, "voxels"), read(other, "voxels"))
    assert len(shared) > 0.95 * plain.voxels


def test_mask_of_another_space_comes_by_its_transforms(
    make_coarse, coarse_mask, coarse_series, coarse_affine, write_image
):
    plain = prepare(make_coarse(coarse_series.astype(np.int16)))
    run = make_coarse(coarse_series.astype(np.int16))
    # In the other space all lies 16 mm to the left and 8 mm higher: two voxels and one.
    moved = np.roll(coarse_mask, (-2, 0, 1), axis=(0, 1, 2))
    write_image(run.mask, moved.astype(np.uint8), coarse_affine)
    paths = []
    for number, shift in enumerate(["10 0 0", "6 0 8"]):
        path = run.dataset / f"{number}.txt"
        path.write_text(
            "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
            f"Parameters: 1 0 0 0 1 0 0 0 1 {shift}\nFixedParameters: 0 0 0\n"
        )
        paths.append(path)
    prepared = prepare(replace(run, mask_transforms=tuple(paths)))
    for name in ("voxels", "signal"):
        np.testing.assert_array_equal(read(prepared, name), read(plain, name))
    assert {"0.txt", "1.txt"} <= dict(prepared.checksums).keys()


@pytest.mark.parametrize("orientation", [0, 21, 46])
def test_masked_series_is_its_own_mask(
    make_run, coarse_mask, coarse_series, coarse_affine, orientations, orientation
):
    """As xcp_d writes it: no means are left, and the first volumes may be one and the same."""
    series = np.where(coarse_mask[..., None], coarse_series - 10_000.0, 0).astype(np.float32)
    series[..., 1] = series[..., 0]
    turn = orientations[orientation]
    affine = coarse_affine @ inv_ornt_aff(turn, coarse_mask.shape)
    run = make_run(apply_orientation(series, turn), apply_orientation(coarse_mask, turn), affine)
    plain = {name: read(prepare(run), name) for name in ("voxels", "signal", "mean", "scale")}
    itself = prepare(replace(run, mask=run.bold))
    for name, values in plain.items():
        np.testing.assert_array_equal(read(itself, name), values)
    assert dict(itself.checksums).keys() == {"bold.nii.gz"}


def test_series_with_values_everywhere_is_no_mask(make_coarse, coarse_series):
    run = make_coarse(coarse_series + 1.0)
    refusal = refusal_of(replace(run, mask=run.bold))
    assert (refusal.reason, refusal.file) == ("no-mask", "bold.nii.gz")
    assert "100%" in refusal.found


def test_number_of_threads_changes_nothing(make_run, brain_on, bold_like):
    mask = brain_on((49, 58, 49), np.diag([4.0, 4, 4, 1]) + translation(-96, -132, -78))
    run = make_run(
        bold_like(mask, 30).astype(np.int16),
        mask,
        np.diag([4.0, 4, 4, 1]) + translation(-96, -132, -78),
    )
    with threadpool_limits(1, user_api="blas"):
        alone = prepare_run(run, run.dataset / "alone", Prepare(), 0)
    with threadpool_limits(2, user_api="blas"):
        together = prepare_run(run, run.dataset / "together", Prepare(), 0)
    for name in ("signal.npy", "scale.npy", "mean.npy", "voxels.npy", "run.json"):
        assert (alone.folder / name).read_bytes() == (together.folder / name).read_bytes()


def test_rows_in_a_file_give_the_same_run_and_leave_no_file(
    make_coarse, coarse_series, monkeypatch
):
    series = coarse_series.astype(np.float32)
    series[10, 12, 10, 3] = np.nan
    run = make_coarse(series)
    in_memory = prepare_run(run, run.dataset / "memory", Prepare(), 0)
    monkeypatch.setattr(rows, "_MOST_IN_MEMORY", 0)
    in_file = prepare_run(run, run.dataset / "file", Prepare(), 0)
    names = sorted(path.name for path in in_memory.folder.iterdir())
    assert sorted(path.name for path in in_file.folder.iterdir()) == names
    for name in names:
        assert (in_file.folder / name).read_bytes() == (in_memory.folder / name).read_bytes()


def translation(x, y, z):
    matrix = np.zeros((4, 4))
    matrix[:3, 3] = x, y, z
    return matrix


def test_finite_background_and_nan_background_give_the_same_run(
    make_coarse, coarse_mask, coarse_series
):
    plain = prepare(make_coarse(coarse_series.astype(np.float32)))
    holes = np.where(coarse_mask[..., None], coarse_series, np.nan).astype(np.float32)
    other = prepare(make_coarse(holes))
    np.testing.assert_array_equal(read(other, "signal"), read(plain, "signal"))
    assert codes(other) == []


@pytest.fixture
def holed(coarse_mask, coarse_series):
    """A few voxels without a value in volumes 0 and 4, and the same with their means there."""
    places = np.argwhere(coarse_mask)[::400]
    holes, filled = coarse_series.copy(), coarse_series.copy()
    for volume, lost in ((0, places[:4]), (4, places[2:])):
        holes[(*lost.T, volume)] = [np.nan, np.inf][volume // 4]
    for place in places:
        voxel = holes[tuple(place)]
        filled[tuple(place)] = np.where(np.isfinite(voxel), voxel, voxel[np.isfinite(voxel)].mean())
    return holes.astype(np.float32), filled.astype(np.float32)


def test_single_gaps_are_filled_by_the_voxels_mean(make_coarse, holed):
    mended, plain = (prepare(make_coarse(series)) for series in holed)
    error = np.abs(values_of(mended) - values_of(plain)) / read(plain, "scale")
    assert error.max() < 1.01
    # Ties may round either way.
    assert np.count_nonzero(error > 0.01) < 1e-3 * error.size
    assert mended.replaced_values == np.count_nonzero(~np.isfinite(holed[0]))
    assert codes(mended) == ["non-finite"]


def test_voxels_without_any_value_leave_the_mask(make_coarse, coarse_mask, coarse_series):
    plain = prepare(make_coarse(coarse_series.astype(np.float32)))
    dead = np.argwhere(coarse_mask)[::200]
    holes = coarse_series.astype(np.float32)
    holes[tuple(dead.T)] = np.nan
    prepared = prepare(make_coarse(holes))
    left = np.setdiff1d(read(plain, "voxels"), read(prepared, "voxels"))
    owners = np.unravel_index(left, (96, 96, 96))
    own = np.rint((np.array(owners).T * 2 + [-94.5, -112.5, -78.5] + [96, 132, 78]) / 8)
    assert {tuple(voxel) for voxel in own} == {tuple(voxel) for voxel in dead}
    assert prepared.replaced_values == 0
    assert "non-finite" in codes(prepared)


@pytest.mark.parametrize("lost", [np.nan, 0])
def test_volumes_without_data_are_refused_and_listed(make_coarse, coarse_mask, lost, bold_like):
    series = bold_like(coarse_mask, 30).astype(np.float32)
    series[..., 5:19:1] = lost
    error = refusal_of(make_coarse(series), dummy_scans=2)
    assert error.reason == "nan-volumes"
    assert "14 without" in error.found
    assert "5, 6, 7, 8, 9, 10, 11, 12, 13, 14, ..." in error.found


def test_gaps_in_over_a_hundredth_of_the_mask_are_refused(make_coarse, coarse_mask, coarse_series):
    series = coarse_series.astype(np.float32)
    series[(*np.argwhere(coarse_mask)[::90].T, 3)] = np.nan
    error = refusal_of(make_coarse(series))
    assert (error.reason, error.found[-3:]) == ("nan-volumes", ": 3")


def test_lost_volume_before_the_first_one_taken_does_not_matter(make_coarse, coarse_series):
    series = coarse_series.astype(np.float32)
    series[..., 0] = np.nan
    assert prepare(make_coarse(series), dummy_scans=1).volumes == 5


def test_voxels_that_never_change_are_zero_and_counted(make_coarse, coarse_mask, coarse_series):
    still = np.argwhere(coarse_mask)[::100]
    coarse_series[tuple(still.T)] = 8_000
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    frames = store.read_frames(prepared, 0, 5, 2.0, "voxel")
    places = np.array(np.unravel_index(read(prepared, "voxels"), (96, 96, 96))).T
    own = np.rint((places * 2 + [-94.5, -112.5, -78.5] + [96, 132, 78]) / 8).astype(int)
    of_still = (own[:, None] == still).all(axis=-1).any(axis=-1)
    assert prepared.constant_voxels == len(still)
    assert codes(prepared) == ["constant-voxels"]
    assert not frames[:, of_still].any()
    assert frames[:, ~of_still].any(axis=0).all()


def test_run_that_never_changes_is_flat(make_coarse, coarse_series):
    assert (
        refusal_of(
            make_coarse(np.repeat(coarse_series[..., :1], 5, axis=3).astype(np.int16))
        ).reason
        == "flat"
    )


def test_empty_mask_is_refused(make_coarse, coarse_mask, coarse_series):
    run = make_coarse(coarse_series.astype(np.int16), np.zeros(coarse_mask.shape, bool))
    error = refusal_of(run)
    assert (error.reason, error.file) == ("empty-mask", "mask.nii.gz")


def test_mask_outside_the_model_grid_is_empty(make_run, coarse_mask, coarse_series, coarse_affine):
    affine = coarse_affine + translation(0, 0, 400)
    assert (
        refusal_of(make_run(coarse_series.astype(np.int16), coarse_mask, affine)).reason
        == "empty-mask"
    )


@pytest.mark.parametrize(("planes", "code"), [(14, "refused"), (17, "low-coverage"), (25, None)])
def test_small_mask_is_flagged(make_coarse, coarse_mask, coarse_series, planes, code):
    mask = coarse_mask.copy()
    mask[:, planes:] = False
    run = make_coarse(coarse_series.astype(np.int16), mask)
    if code == "refused":
        assert refusal_of(run).reason == "low-coverage"
    else:
        prepared = prepare(run)
        assert codes(prepared) == ([code] if code else [])
        assert (prepared.coverage < 0.85) == (code is not None)


@pytest.mark.parametrize(("volumes", "fits"), [(15, False), (16, True)])
def test_run_must_span_a_window(make_coarse, coarse_mask, volumes, fits, bold_like):
    run = make_coarse(bold_like(coarse_mask, volumes).astype(np.int16))
    span = 39 * 0.72
    if fits:
        assert store.count_frames(prepare(run, span), 0.72) >= 40
    else:
        error = refusal_of(run, span)
        assert error.reason == "too-short"
        assert "28.08" in error.expected
        assert "28.00" in error.found


def test_run_of_exactly_one_window_is_taken(make_coarse, coarse_mask, bold_like):
    time = RepetitionTime(seconds=0.72, origin="sidecar")
    run = make_coarse(bold_like(coarse_mask, 40).astype(np.int16), repetition_time=time)
    assert store.count_frames(prepare(run, 39 * 0.72), 0.72) == 40


def test_dummy_scans_shorten_a_run(make_coarse, coarse_mask, bold_like):
    run = make_coarse(bold_like(coarse_mask, 16).astype(np.int16))
    assert refusal_of(run, 39 * 0.72, dummy_scans=1).reason == "too-short"
    assert refusal_of(run, 0, dummy_scans=99).reason == "too-short"


def test_single_volume_is_too_short(make_coarse, coarse_mask, bold_like):
    assert refusal_of(make_coarse(bold_like(coarse_mask, 1).astype(np.int16))).reason == "too-short"


def write_confounds(run, dummies, displacement):
    flags = [int(row < dummies) for row in range(len(displacement))]
    rows = zip(flags, displacement, strict=True)
    text = "\n".join(f"{flag}\t{value}" for flag, value in rows)
    path = run.dataset / "confounds.tsv"
    path.write_text(f"non_steady_state_outlier00\tframewise_displacement\n{text}\n")
    return replace(run, confounds=path)


def test_dummy_scans_of_the_confounds_are_left_out(make_coarse, coarse_series):
    run = make_coarse(coarse_series.astype(np.int16))
    cut = prepare(make_coarse(coarse_series[..., 2:].astype(np.int16)))
    prepared = prepare(write_confounds(run, 2, ["n/a", 0.1, 0.2, 0.3, 0.4, 0.5]))
    assert (prepared.dummy_scans, prepared.volumes) == (2, 4)
    assert prepared.displacement == (0, 0.3, 0.4, 0.5)
    np.testing.assert_array_equal(read(prepared, "signal"), read(cut, "signal"))


def test_given_dummy_scans_win_over_those_of_the_confounds(make_coarse, coarse_series):
    run = write_confounds(make_coarse(coarse_series.astype(np.int16)), 2, ["n/a", *[0.1] * 5])
    assert prepare(run, dummy_scans=0).volumes == 6


def test_missing_confounds_are_noticed(make_coarse, coarse_series):
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    assert prepared.displacement is None
    assert "no-confounds" in [notice.code for notice in prepared.notices]


def test_unusual_voxels_are_noticed(make_coarse, coarse_series):
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    notice = next(notice for notice in prepared.notices if notice.code == "voxel-size")
    assert "8 x 8 x 8 mm" in notice.message


@pytest.mark.parametrize(
    ("edges", "noticed"),
    [((6, 5, 5), False), ((6.2, 5, 5), True), ((5, 5, 0.6), False), ((5, 5, 0.45), True)],
)
def test_voxels_are_judged_by_each_edge(make_run, brain_on, edges, noticed):
    shape = tuple(int(200 / edge) for edge in edges)
    affine = np.diag([*map(float, edges), 1.0])
    affine[:3, 3] = -98, -118, -84
    mask = brain_on(shape, affine)
    series = np.random.default_rng(0).integers(1, 9, (*shape, 2)).astype(np.int16)
    prepared = prepare(make_run(series, mask, affine))
    assert ("voxel-size" in [notice.code for notice in prepared.notices]) == noticed


def test_statistics_are_those_of_the_values(make_coarse, coarse_series):
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    values = values_of(prepared)
    assert prepared.mean == pytest.approx(values.mean(), rel=1e-4)
    assert prepared.deviation == pytest.approx(values.std(), rel=1e-3)
    assert (prepared.volumes, prepared.voxels) == values.shape
    assert prepared.tr == 2.0


def test_record_comes_back_from_its_folder(make_coarse, coarse_series):
    run = write_confounds(make_coarse(coarse_series.astype(np.int16)), 1, ["n/a", *[0.1] * 5])
    prepared = prepare(run)
    assert store.load_prepared(prepared.folder) == prepared


def test_folder_holds_the_prepared_run_and_nothing_else(make_coarse, coarse_series):
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    names = {path.name for path in prepared.folder.iterdir()}
    assert names == {"signal.npy", "scale.npy", "mean.npy", "voxels.npy", "run.json"}
    signal = np.load(prepared.folder / "signal.npy", mmap_mode="r")
    assert (signal.dtype, signal.flags.c_contiguous) == (np.int8, True)
    assert (read(prepared, "scale").dtype, read(prepared, "voxels").dtype) == (np.float32, np.int32)


def test_checksums_are_those_of_the_files(make_coarse, coarse_series):
    run = write_confounds(make_coarse(coarse_series.astype(np.int16)), 1, ["n/a", *[0.1] * 5])
    for name, digest in prepare(run).checksums:
        assert digest == hashlib.sha256((run.dataset / name).read_bytes()).hexdigest()
    assert [name for name, _ in prepare(run).checksums] == [
        "bold.nii.gz",
        "mask.nii.gz",
        "confounds.tsv",
    ]


def test_record_names_no_place_of_the_machine(make_coarse, coarse_series):
    prepared = prepare(make_coarse(coarse_series.astype(np.int16)))
    text = (prepared.folder / "run.json").read_text()
    assert str(prepared.folder.parent) not in text
    assert json.loads(text)["grid"]["shape"] == [96, 96, 96]


def test_fingerprint_is_of_inputs_and_settings(make_coarse, coarse_series):
    run = make_coarse(coarse_series.astype(np.int16))
    first, again = prepare(run), prepare(run)
    other_settings = prepare(run, dummy_scans=1)
    coarse_series[tuple(np.argwhere(coarse_series[..., 0])[0])] += 1
    other_input = prepare(make_coarse(coarse_series.astype(np.int16)))
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other_settings.fingerprint, other_input.fingerprint}) == 3
