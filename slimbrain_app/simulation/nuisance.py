"""What is in a BOLD series besides the brain's doing: motion, breath, heartbeat, drift."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.simulation.anatomy import Anatomy, Floats
from slimbrain_app.simulation.bold import Sources
from slimbrain_app.simulation.noise import draw_field, draw_wandering

# Radius of the head for framewise displacement (Power et al. 2012, NeuroImage 59:2142-2154), mm.
HEAD_RADIUS = 50.0

# Deviation of a typical head's position (mm, and rad) and its memory (s).
_SHIFT, _TURN, _MEMORY = 0.12, 0.0012, 60.0
# One spike per so many seconds, of so many mm of framewise displacement.
_SPIKE_EVERY, _SPIKE_SIZES = 100.0, (0.8, 1.6)
# Restlessness of those who hardly move.
_CALMEST = 0.1
# Share of the displacement that realignment leaves; share of the signal lost per mm of movement.
_RESIDUAL, _SPIN_HISTORY = 0.4, 0.015

# Hz; how far the pace strays, and its memory and that of the systemic oscillation in s.
_BREATHS, _HEARTBEATS, _UNSTEADINESS = 0.27, 1.1, 0.1
_PACE_MEMORY, _SYSTEMIC_MEMORY = 30.0, 8.0
# Shares of the signal at rest.
_RESPIRATION, _CARDIAC, _SYSTEMIC, _DRIFT = 0.003, 0.008, 0.003, 0.004


def draw_motion(
    volumes: int, tr: float, restlessness: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the head's position, shape (volumes, 6): x, y, z in mm, then rotations in rad.

    It wanders, and now and then jumps away for a single volume.
    """
    scale = np.array([_SHIFT] * 3 + [_TURN] * 3)
    motion = restlessness * scale * draw_wandering(volumes, 6, tr, _MEMORY, generator)
    spikes = min(max(1, round(volumes * tr / _SPIKE_EVERY)), volumes - 1)
    places = 1 + generator.choice(volumes - 1, spikes, replace=False)
    directions = scale * generator.standard_normal((spikes, 6))
    sizes = generator.uniform(*_SPIKE_SIZES, spikes) / displacement(directions)
    motion[places] += directions * sizes[:, None]
    return np.asarray(motion - motion[0])


def judge_restlessness(mean: float, tr: float) -> float:
    """Return the restlessness of a head whose mean framewise displacement (mm) is known.

    Jumps make their share of it whoever jumps; whoever moves less than that hardly wanders at all.
    """
    jumps = 2 * float(np.mean(_SPIKE_SIZES)) * tr / _SPIKE_EVERY
    step = np.sqrt(2 * (1 - np.exp(-tr / _MEMORY)))
    typical = displacement(np.array([_SHIFT] * 3 + [_TURN] * 3)) * step * np.sqrt(2 / np.pi)
    return max((mean - jumps) / float(typical), _CALMEST)


def displacement(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the framewise displacement (mm) of changes in position, shape (..., 6)."""
    return np.asarray(np.abs(steps) @ ([1.0] * 3 + [HEAD_RADIUS] * 3))


def move_edges(anatomy: Anatomy, motion: NDArray[np.float64]) -> Sources:
    """Return what realignment leaves of head motion: moving edges, and loss by spin history.

    Motion is small against a voxel, so the image's change is its gradient times the displacement.
    """
    rest = anatomy.fill_volumes(anatomy.rest)
    gradient = np.stack(
        [anatomy.pick_voxels(slope) for slope in np.gradient(rest, anatomy.voxel_size)[::-1]],
        axis=1,
    )
    # A rotation about an axis moves a point by their cross product.
    turning = np.cross(anatomy.coordinates.astype(np.float32), gradient)
    loss = -_SPIN_HISTORY * anatomy.rest
    weights = np.column_stack([-_RESIDUAL * gradient, -_RESIDUAL * turning, loss])
    steps = np.diff(motion, axis=0, prepend=motion[:1])
    return Sources(weights=weights, series=np.column_stack([motion, displacement(steps)]))


def draw_physiology(
    anatomy: Anatomy, volumes: int, tr: float, generator: np.random.Generator
) -> Sources:
    """Return breath, heartbeat and a slow oscillation of the whole brain's blood.

    Breath and heartbeat are sampled, hence aliased, at the volumes' times.
    """
    breath = draw_rhythm(_BREATHS, volumes, tr, generator)
    pulse = draw_rhythm(_HEARTBEATS, volumes, tr, generator)
    systemic = draw_wandering(volumes, 1, tr, _SYSTEMIC_MEMORY, generator)[:, 0]
    maps = (
        _RESPIRATION * _near_chest(anatomy),
        _CARDIAC * _pulsating(anatomy),
        _SYSTEMIC * anatomy.grey,
    )
    return Sources(
        weights=np.column_stack([share * anatomy.rest for share in maps]),
        series=np.column_stack([breath, pulse, systemic]).astype(np.float64),
    )


def draw_rhythm(
    frequency: float, volumes: int, tr: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return an oscillation of unit variance around ``frequency`` (Hz), shape (volumes,)."""
    pace = 1 + _UNSTEADINESS * draw_wandering(volumes, 1, tr, _PACE_MEMORY, generator)[:, 0]
    phase = 2 * np.pi * (generator.random() + np.cumsum(frequency * pace * tr))
    return np.asarray(np.sqrt(2) * np.sin(phase))


def draw_drift(anatomy: Anatomy, volumes: int, generator: np.random.Generator) -> Sources:
    """Return the scanner's drift: polynomials in time, each with a smooth map of its own."""
    orders = 3
    time = np.linspace(-1, 1, volumes)
    polynomials = np.polynomial.legendre.legvander(time, orders)[:, 1:]
    # Legendre polynomials of order n have the variance 1 / (2n + 1).
    series = polynomials * np.sqrt(2 * np.arange(1, orders + 1) + 1)
    maps = [draw_field(anatomy, 40.0, generator) * anatomy.rest for _ in range(orders)]
    strength = np.float32(_DRIFT / np.sqrt(orders))
    return Sources(weights=strength * np.column_stack(maps), series=np.asarray(series))


def _near_chest(anatomy: Anatomy) -> Floats:
    """Breath changes the field the more, the nearer a voxel is to the chest."""
    height = anatomy.coordinates[:, 2]
    return np.asarray(np.interp(height, (-70, 80), (1.5, 0.5)), dtype=np.float32)


def _pulsating(anatomy: Anatomy) -> Floats:
    """Fluid, and the great arteries at the brain's base."""
    distance = np.linalg.norm(anatomy.coordinates - (0, -10, -25), axis=1)
    arteries = np.exp(-0.5 * (distance / 15) ** 2)
    return np.asarray(np.maximum(anatomy.fluid, arteries), dtype=np.float32)
