from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from nilearn.interfaces.fmriprep import load_confounds
from scipy.spatial.transform import Rotation

MOTION = ["trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z"]


def test_global_signal_is_the_mean_over_the_mask(run):
    np.testing.assert_allclose(run.confounds["global_signal"], run.signal.mean(axis=1), rtol=1e-5)


def test_dvars_is_the_root_mean_square_change(run):
    signal = run.signal * 1000 / np.median(run.signal)
    expected = [np.sqrt(np.mean((b - a) ** 2)) for a, b in pairwise(signal)]
    np.testing.assert_allclose(run.confounds["dvars"][1:], expected, rtol=0.01)
    assert run.confounds["std_dvars"].median() == pytest.approx(1)


def test_first_volume_has_no_change(run):
    text = run.beside("_desc-confounds_timeseries.tsv").read_text().splitlines()
    first = dict(zip(text[0].split("\t"), text[1].split("\t"), strict=True))
    for name in ("framewise_displacement", "rmsd", "dvars", "std_dvars", "trans_x_derivative1"):
        assert first[name] == "n/a"
    assert "n/a" not in "".join(text[2:])


def test_framewise_displacement_follows_the_parameters(run):
    pairs = pairwise(run.confounds[MOTION].to_numpy())
    for volume, (before, after) in enumerate(pairs, start=1):
        step = [abs(b - a) for a, b in zip(before, after, strict=True)]
        expected = sum(step[:3]) + 50 * sum(step[3:])
        assert run.confounds["framewise_displacement"][volume] == pytest.approx(expected, rel=1e-4)


def test_rmsd_is_that_of_the_rigid_movement(run):
    """Jenkinson's formula on matrices, without the small angles that the table assumes."""
    heads = []
    for row in run.confounds[MOTION].to_numpy():
        head = np.eye(4)
        head[:3, :3], head[:3, 3] = Rotation.from_euler("xyz", row[3:]).as_matrix(), row[:3]
        heads.append(head)
    for volume in range(1, len(heads)):
        change = heads[volume] @ np.linalg.inv(heads[volume - 1]) - np.eye(4)
        turn, shift = change[:3, :3], change[:3, 3]
        expected = np.sqrt(80**2 / 5 * np.trace(turn.T @ turn) + shift @ shift)
        assert run.confounds["rmsd"][volume] == pytest.approx(expected, rel=0.02, abs=1e-4)


def test_expansions_are_differences_and_squares(run):
    table = run.confounds
    for name in [*MOTION, "global_signal", "csf", "white_matter"]:
        change = np.diff(table[name])
        np.testing.assert_allclose(table[f"{name}_derivative1"][1:], change, atol=1e-3)
        np.testing.assert_allclose(table[f"{name}_power2"], table[name] ** 2, rtol=1e-5)
        np.testing.assert_allclose(
            table[f"{name}_derivative1_power2"][1:],
            table[f"{name}_derivative1"][1:] ** 2,
            rtol=1e-4,
        )


def test_spikes_are_where_the_signal_jumps(run):
    table = run.confounds
    spikes = table["framewise_displacement"] > 0.5
    assert spikes.sum() >= 2
    assert table["std_dvars"][spikes].mean() > 1.2 * table["std_dvars"][~spikes].mean()


def test_nilearn_reads_the_table_and_scrubs_the_spikes(run):
    table, kept = load_confounds(
        str(run.bold), strategy=("motion", "wm_csf", "global_signal", "scrub"), fd_threshold=0.5
    )
    assert len(table) == run.image.shape[3]
    spikes = np.flatnonzero(run.confounds["framewise_displacement"] > 0.5)
    assert set(spikes).isdisjoint(kept)


def test_sidecar_describes_columns_of_the_table(run):
    described = json.loads(run.beside("_desc-confounds_timeseries.json").read_text())
    assert set(described) <= set(run.confounds.columns)
