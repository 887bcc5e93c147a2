"""Random series: wandering in time, smooth in space, and the scanner's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from scipy.ndimage import gaussian_filter

from slimbrain_app.simulation.anatomy import Anatomy, Floats

# Spontaneous noise: share of the signal at rest, spread of its Gaussian (mm), memory (s).
_SPONTANEOUS, _SPREAD, _MEMORY = np.float32(0.007), 3.0, 3.0
# Thermal noise at 3 mm, scanner units. It grows as voxels shrink: less tissue, less signal.
_THERMAL = 70.0


def stream_noise(anatomy: Anatomy, tr: float, generator: np.random.Generator) -> Iterator[Floats]:
    """Yield the noise of one volume after the other, shape (voxels,), scanner units."""
    spread = _SPREAD / anatomy.voxel_size
    sides = anatomy.shape[::-1]
    spontaneous = _SPONTANEOUS / _norm(sides, spread) * anatomy.rest
    thermal = np.float32(_THERMAL * (3 / anatomy.voxel_size) ** 3)
    for state in stream_wandering(sides, tr, _MEMORY, generator):
        noise = spontaneous * anatomy.pick_voxels(_blur(state, spread))
        noise += thermal * generator.standard_normal(len(noise), dtype=np.float32)
        yield noise


def stream_wandering(
    shape: tuple[int, ...], tr: float, memory: float, generator: np.random.Generator
) -> Iterator[Floats]:
    """Yield states of a first-order autoregression, of unit variance, every ``tr`` s.

    The correlation falls to 1/e within ``memory`` s.
    """
    decay = np.exp(-tr / memory)
    kept, renewed = np.float32(decay), np.float32(np.sqrt(1 - decay**2))
    state = generator.standard_normal(shape, dtype=np.float32)
    while True:
        yield state
        state = kept * state + renewed * generator.standard_normal(shape, dtype=np.float32)


def draw_wandering(
    volumes: int, count: int, tr: float, memory: float, generator: np.random.Generator
) -> Floats:
    """Return the first states of `stream_wandering`, shape (volumes, count)."""
    return np.stack(list(islice(stream_wandering((count,), tr, memory, generator), volumes)))


def draw_field(anatomy: Anatomy, spread: float, generator: np.random.Generator) -> Floats:
    """Draw a random map of unit variance, blurred by a Gaussian of ``spread`` mm, (voxels,)."""
    sides, spread = anatomy.shape[::-1], spread / anatomy.voxel_size
    white = generator.standard_normal(sides, dtype=np.float32)
    return np.asarray(anatomy.pick_voxels(_blur(white, spread)) / _norm(sides, spread))


def _blur(volume: Floats, spread: float) -> Floats:
    # Wrapping keeps the variance the same everywhere; opposite borders are background.
    return np.asarray(gaussian_filter(volume, spread, mode="wrap"))


def _norm(sides: tuple[int, ...], spread: float) -> np.float32:
    """Return the deviation of blurred white noise."""
    impulse = np.zeros(sides, dtype=np.float32)
    impulse[0, 0, 0] = 1
    return np.float32(np.linalg.norm(_blur(impulse, spread)))
