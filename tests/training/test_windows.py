"""Windows as a training reads them, against the way in which runs are embedded."""

from __future__ import annotations

import itertools
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from slimbrain_app.model.presets import PRESETS
from slimbrain_app.model.tokens import build_table, gather_patches
from slimbrain_app.prepare.store import read_frames
from slimbrain_app.records import Contract
from slimbrain_app.settings import Hide
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.samples import Sample
from slimbrain_app.training.windows import Windows, cut_patches

TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small arrays the threads, which wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def windows_of(recordings, contract=None, sizes=TINY, seed=0):
    items = [Item(recording, (0, 20, 60)) for recording in recordings]
    return Windows(items, contract or Contract(), sizes, Hide(), seed)


def cut(windows, sample):
    return cut_patches([windows[sample][1]], windows.sizes, "cpu")


def frames_of(prepared, start, contract):
    return np.stack(
        [
            read_frames(prepared, start, contract.frames, contract.frame_time, channel)
            for channel in contract.channels
        ]
    )


def loop_patches(prepared, frames, sizes):
    """Cut patches voxel by voxel: {(t, x, y, z) of the token grid: (channels, t, x, y, z)}."""
    where = np.unravel_index(np.load(prepared.folder / "voxels.npy"), sizes.shape[1:])
    patches = {}
    for column, place in enumerate(zip(*where, strict=True)):
        token = tuple(int(at) // edge for at, edge in zip(place, sizes.patch[1:], strict=True))
        inner = tuple(int(at) % edge for at, edge in zip(place, sizes.patch[1:], strict=True))
        for time in range(sizes.grid[0]):
            key = (time, *token)
            patch = patches.setdefault(key, np.zeros((len(frames), *sizes.patch), np.float32))
            part = slice(time * sizes.patch[0], (time + 1) * sizes.patch[0])
            patch[(slice(None), slice(None), *inner)] = frames[:, part, column]
    return patches


@pytest.mark.parametrize(
    ("channels", "tr"),
    itertools.product([("voxel",), ("global",), ("voxel", "global")], [2.0, 0.5]),
)
def test_patches_are_those_that_a_plain_loop_cuts_from_interpolated_frames(
    tmp_path, prepared_runs, channels, tr
):
    (recording,) = prepared_runs(tmp_path, 1, volumes=int(120 / tr), tr=tr)
    contract = Contract(channels=channels)
    sizes = replace(TINY, channels=len(channels))
    windows = windows_of([recording], contract, sizes)
    found = cut(windows, Sample(0, 60, 1, 0))
    frames = frames_of(recording.prepared, 60, contract)
    expected = loop_patches(recording.prepared, frames, sizes)
    kept = windows[Sample(0, 60, 1, 0)][0].kept
    tokens = build_table(kept, sizes).tokens
    assert len(tokens) == len(expected) == len(found)
    for token, patch in zip(tokens.tolist(), found.numpy(), strict=True):
        place = tuple(int(at) for at in np.unravel_index(token, sizes.grid))
        np.testing.assert_allclose(patch, expected[place].ravel(), atol=2e-5)


@pytest.mark.parametrize(
    ("preset", "deletion"),
    [("tiny", "token"), ("tiny", "unit"), ("tiny", "none"), ("base", "token"), ("base", "unit")],
)
def test_patches_lie_as_embedding_gathers_them_whatever_is_left_out(
    tmp_path, prepared_runs, preset, deletion
):
    (recording,) = prepared_runs(tmp_path, 1)
    sizes = replace(PRESETS[preset], deletion=deletion)
    windows = windows_of([recording], Contract(), sizes)
    found = cut(windows, Sample(0, 20, 1, 0))
    table = build_table(windows[Sample(0, 20, 1, 0)][0].kept, sizes)
    frames = torch.from_numpy(frames_of(recording.prepared, 20, Contract()))
    voxels = torch.from_numpy(np.load(recording.prepared.folder / "voxels.npy"))
    torch.testing.assert_close(found, gather_patches(frames, voxels, table), rtol=0, atol=2e-5)


def test_global_values_are_cut_off_at_ten_deviations(tmp_path, prepared_runs):
    (recording,) = prepared_runs(tmp_path, 1)
    prepared = replace(recording.prepared, deviation=recording.prepared.deviation / 30)
    contract = Contract(channels=("global",))
    found = cut(windows_of([replace(recording, prepared=prepared)], contract), Sample(0, 0, 1, 0))
    assert found.abs().max() == 10
    assert (found.abs() == 10).any() and (found.abs() < 10).any()


def test_only_the_volumes_near_a_window_are_read(tmp_path, prepared_runs):
    (recording,) = prepared_runs(tmp_path, 1, volumes=200)
    sample = Sample(0, 200, 1, 0)
    before = cut(windows_of([recording]), sample)
    # 40 frames from frame 200 on: volumes 72 to 86.04, and twelve to either side.
    path = recording.prepared.folder / "signal.npy"
    signal = np.load(path)
    signal[: 72 - 12] = signal[87 + 12 + 1 :] = 127
    np.save(path, signal)
    windows = windows_of([recording])
    assert torch.equal(cut(windows, sample), before)
    assert len(windows[sample][1].volumes) == 40


def test_a_mask_depends_on_seed_pass_and_number_alone(tmp_path, prepared_runs):
    found = prepared_runs(tmp_path, 2)

    def labels(recordings, sample, seed=0):
        return windows_of(recordings, seed=seed)[sample][0].mask.labels

    mask = labels(found, Sample(0, 0, 1, 5))
    assert torch.equal(mask, labels(found[:1], Sample(0, 60, 1, 5)))
    for other in (Sample(0, 0, 2, 5), Sample(0, 0, 1, 6)):
        assert not torch.equal(mask, labels(found, other))
    assert not torch.equal(mask, labels(found, Sample(0, 0, 1, 5), seed=1))


def test_more_runs_than_are_remembered_are_read_rightly_in_any_order(tmp_path, prepared_runs):
    found = prepared_runs(tmp_path, 20)
    windows = windows_of(found)
    for item in [*range(20), 0, 19, 5]:
        assert np.array_equal(
            windows[Sample(item, 20, 1, 0)][1].columns,
            windows_of(found[item : item + 1])[Sample(0, 20, 1, 0)][1].columns,
        )
    for item in (0, 7):
        fresh = windows_of(found[item : item + 1])
        assert torch.equal(cut(windows, Sample(item, 20, 1, 0)), cut(fresh, Sample(0, 20, 1, 0)))


def test_windows_lie_one_after_another(tmp_path, prepared_runs):
    windows = windows_of(prepared_runs(tmp_path, 2))
    samples = [Sample(0, 20, 1, 0), Sample(1, 0, 1, 1), Sample(0, 0, 1, 2)]
    together = cut_patches([windows[sample][1] for sample in samples], TINY, "cpu")
    assert torch.equal(together, torch.cat([cut(windows, sample) for sample in samples]))


def test_copies_for_other_processes_are_small_even_after_reading(tmp_path, prepared_runs):
    windows = windows_of(prepared_runs(tmp_path, 4))
    for item in range(4):
        cut(windows, Sample(item, 0, 1, 0))
    copy = pickle.dumps(windows)
    assert len(copy) < 4 * 2000
    assert torch.equal(
        cut(pickle.loads(copy), Sample(1, 0, 1, 0)), cut(windows, Sample(1, 0, 1, 0))
    )


def test_a_patch_has_zeros_where_there_is_no_brain(tmp_path, prepared_runs):
    (recording,) = prepared_runs(tmp_path, 1)
    windows = windows_of([recording], Contract(channels=("global",)))
    found = cut(windows, Sample(0, 0, 1, 0))
    # One voxel of eight is brain, but for those that were lost.
    assert math.isclose((found != 0).float().mean(), 0.125, rel_tol=0.05)
