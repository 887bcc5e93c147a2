from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from slimbrain_app.simulation.nuisance import (
    displacement,
    draw_drift,
    draw_motion,
    draw_physiology,
    draw_rhythm,
    judge_restlessness,
    move_edges,
)


def test_framewise_displacement_of_known_steps():
    steps = np.array([[0.1, -0.2, 0.3, 0.001, -0.002, 0.003], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(displacement(steps), [0.6 + 50 * 0.006, 0])


def test_head_jumps_once_per_hundred_seconds():
    for seed in range(20):
        motion = draw_motion(300, 2.0, 0.5, np.random.default_rng(seed))
        steps = displacement(np.diff(motion, axis=0))
        # A jump away and back again makes two steps, unless two jumps follow one another.
        assert 8 <= np.sum(steps > 0.5) <= 12


def test_motion_starts_at_the_reference():
    assert not draw_motion(10, 2.0, 1.0, np.random.default_rng(0))[0].any()


def test_restless_people_move_more():
    calm, restless = (
        np.median(displacement(np.diff(draw_motion(200, 2.0, r, np.random.default_rng(1)), axis=0)))
        for r in (0.5, 2.0)
    )
    assert restless == pytest.approx(4 * calm, rel=0.05)


@pytest.mark.parametrize(("mean", "tr"), [(0.1, 2.0), (0.3, 1.5), (0.5, 3.0)])
def test_heads_move_as_much_as_is_known(mean, tr):
    restlessness = judge_restlessness(mean, tr)
    motion = draw_motion(4000, tr, restlessness, np.random.default_rng(0))
    moved = displacement(np.diff(motion, axis=0)).mean()
    assert moved == pytest.approx(mean, rel=0.1)


@pytest.mark.parametrize("parameter", range(6))
def test_edges_move_as_the_head_does(anatomy, parameter):
    """The first-order change is that of moving the image itself, left incomplete."""
    position = np.zeros(6)
    position[parameter] = 0.3 if parameter < 3 else 0.006
    sources = move_edges(anatomy, np.stack([np.zeros(6), position]))
    change = sources.weights[:, :6] @ position

    image = anatomy.fill_volumes(anatomy.rest).T.astype(float)
    head = np.eye(4)
    head[:3, :3] = Rotation.from_rotvec(position[3:]).as_matrix()
    head[:3, 3] = position[:3]
    back = np.linalg.inv(anatomy.affine) @ np.linalg.inv(head) @ anatomy.affine
    moved = affine_transform(image, back[:3, :3], back[:3, 3], order=3)
    expected = anatomy.pick_voxels((moved - image).T)
    slope, _ = np.polyfit(expected, change, 1)
    assert np.corrcoef(expected, change)[0, 1] > 0.9
    assert 0.25 < slope < 0.5


def test_movement_costs_signal_whatever_its_direction(anatomy):
    motion = np.zeros((4, 6))
    motion[2, 0] = 1.0
    sources = move_edges(anatomy, motion)
    loss = sources.weights[:, 6].mean() * sources.series[:, 6] / anatomy.rest.mean()
    np.testing.assert_allclose(loss, [0, 0, -0.015, -0.015], rtol=1e-4)


@pytest.mark.parametrize(("frequency", "tr"), [(0.27, 0.5), (1.1, 0.25)])
def test_rhythms_beat_at_their_pace(frequency, tr):
    rhythm = draw_rhythm(frequency, 4000, tr, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(rhythm)) ** 2
    mean = np.sum(power * np.fft.rfftfreq(4000, tr)) / power.sum()
    assert mean == pytest.approx(frequency, rel=0.05)
    assert rhythm.std() == pytest.approx(1, abs=0.05)


def test_heartbeat_is_strongest_in_fluid(anatomy):
    sources = draw_physiology(anatomy, 50, 2.0, np.random.default_rng(0))
    relative = sources.weights[:, 1] / anatomy.rest
    above = anatomy.coordinates[:, 2] > 20
    assert (
        relative[above & (anatomy.fluid > 0.5)].min()
        > relative[above & (anatomy.white > 0.8)].max()
    )


def test_drift_is_slow_and_of_its_size(anatomy):
    sources = draw_drift(anatomy, 200, np.random.default_rng(0))
    np.testing.assert_allclose(sources.series.std(axis=0), 1, rtol=0.02)
    share = (sources.weights @ sources.series.T).std(axis=1) / anatomy.rest
    assert np.median(share) == pytest.approx(0.004, rel=0.5)
    # A cubic goes through its mean three times at most.
    crossings = np.diff(np.sign(sources.series), axis=0) != 0
    assert crossings.sum(axis=0).max() <= 3
