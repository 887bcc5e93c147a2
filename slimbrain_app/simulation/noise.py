"""Random series: wandering in time, smooth in space, and the scanner's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
from scipy.sparse import csr_array

from slimbrain_app.simulation.anatomy import Anatomy, Floats

# Spontaneous noise: share of the signal at rest, spread of its Gaussian (mm), memory (s).
_SPONTANEOUS, SPREAD, _MEMORY = np.float32(0.007), 3.0, 3.0
# Thermal noise at 3 mm, scanner units. It grows as voxels shrink: less tissue, less signal.
_THERMAL = 70.0
# Step of a field's lattice, and where its Gaussian is cut off, in deviations of the Gaussian.
_STEP, _REACH = 1.5, 4.0


class Field:
    """Random maps of unit variance, white noise blurred by a Gaussian of ``spread`` mm.

    The noise lies on a lattice no finer than the Gaussian needs, which makes a map cheap. Each axis
    is blurred by a matrix of its own whose rows have unit length, so that the variance is one in
    every voxel. Over a distance d the correlation is exp(-d² / (4 spread²)).
    """

    def __init__(self, anatomy: Anatomy, spread: float) -> None:
        self._anatomy = anatomy
        sides = anatomy.shape[::-1]
        self._matrices = [_blur_axis(side * anatomy.voxel_size, side, spread) for side in sides]
        self.lattice = tuple(matrix.shape[1] for matrix in self._matrices)

    def blur(self, white: Floats) -> Floats:
        """Return the map that noise on the lattice makes, shape (voxels,)."""
        along_z, along_y, along_x = self._matrices
        volume = np.tensordot(along_z, along_y @ (white @ along_x.T), 1)
        return self._anatomy.pick_voxels(volume)

    def draw(self, generator: np.random.Generator) -> Floats:
        return self.blur(generator.standard_normal(self.lattice, dtype=np.float32))


def stream_noise(
    anatomy: Anatomy, tr: float, generator: np.random.Generator, spread: float = SPREAD
) -> Iterator[Floats]:
    """Yield the noise of one volume after the other, shape (voxels,), scanner units."""
    field = Field(anatomy, spread)
    spontaneous, thermal = _SPONTANEOUS * anatomy.rest, _thermal(anatomy)
    for state in stream_wandering(field.lattice, tr, _MEMORY, generator):
        noise = spontaneous * field.blur(state)
        noise += thermal * generator.standard_normal(len(noise), dtype=np.float32)
        yield noise


def clear_noise(noise: Iterator[Floats], maps: csr_array) -> Iterator[Floats]:
    """Yield noise less what maps, shape (voxels, maps), show of it: its fit by least squares."""
    across = csr_array(maps.T)
    gram = (across @ maps).toarray().astype(np.float64)
    resolved = np.linalg.pinv(gram, rcond=1e-5, hermitian=True).astype(np.float32)
    for volume in noise:
        yield volume - maps @ (resolved @ (across @ volume))


def expect_noise(anatomy: Anatomy) -> Floats:
    """Return the deviation over time of `stream_noise`, shape (voxels,)."""
    return np.asarray(np.hypot(_SPONTANEOUS * anatomy.rest, _thermal(anatomy)))


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
    """Draw one map of a `Field`, shape (voxels,)."""
    return Field(anatomy, spread).draw(generator)


def _thermal(anatomy: Anatomy) -> np.float32:
    return np.float32(_THERMAL * (3 / anatomy.voxel_size) ** 3)


def _blur_axis(length: float, points: int, spread: float) -> Floats:
    """Return the matrix (points, lattice) that blurs along an axis of so many mm."""
    reach = _REACH * spread
    count = int(np.ceil((length + 2 * reach) / (_STEP * spread))) + 1
    lattice = np.linspace(-reach, length + reach, count)
    places = (np.arange(points) + 0.5) * (length / points)
    distance = np.abs(places[:, None] - lattice) / spread
    # Cut off before numbers become so small that processors slow down over them.
    matrix = np.where(distance < _REACH, np.exp(-0.5 * distance**2), 0)
    return np.asarray(matrix / np.linalg.norm(matrix, axis=1, keepdims=True), np.float32)
