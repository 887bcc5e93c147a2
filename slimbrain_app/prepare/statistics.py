"""What is gathered about a series while its volumes pass by, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.prepare import parallel

Array = NDArray[np.float32]

_ROUNDING = 1e-6
# Columns of a block of rows that fit into the processor's cache together with what is made of them.
CHUNK = 1 << 13


def moments_of(
    origin: Array, parts: Iterable[Array], threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each voxel's mean and deviation over all rows (volumes, voxels).

    Parameters
    ----------
    origin : ndarray, shape (voxels,)
        A row: around it sums stay small and lose no digits, so that those of a part fit into
        float32.
    parts : iterable of ndarray, shape (some volumes, voxels)
        All rows. Where they are cut may change the last bit.

    Returns
    -------
    mean, deviation : ndarray, shape (voxels,)
        The deviation is 0 where only rounding makes a difference.
    """
    count, sums = 0, np.zeros((2, len(origin)))
    for size, some in parallel.map_in_order(partial(_sum_around, origin), parts, threads):
        count += size
        sums += some
    shift, squares = sums / count
    mean = origin + shift
    deviation = np.sqrt(np.maximum(squares - shift**2, 0))
    return mean, np.where(deviation > _ROUNDING * np.abs(mean), deviation, 0)


def _sum_around(origin: Array, rows: Array) -> tuple[int, Array]:
    """Return how many rows there are, and the sums of their differences and of the squares."""
    sums = np.empty((2, len(origin)), np.float32)
    for first in range(0, len(origin), CHUNK):
        chunk = slice(first, first + CHUNK)
        shifted = rows[:, chunk] - origin[chunk]
        np.sum(shifted, axis=0, out=sums[0, chunk])
        np.einsum("ij,ij->j", shifted, shifted, out=sums[1, chunk])
    return len(rows), sums


class Stillness:
    """Which of some voxels (flat indices into a volume) keep their first number throughout.

    ``still`` are their positions among those voxels.
    """

    def __init__(self, voxels: NDArray[np.intp]) -> None:
        self._voxels = voxels
        self._first: NDArray[Any] | None = None
        self.still = np.arange(len(voxels))

    def watch(self, volume: NDArray[Any]) -> None:
        """Look at the next volume, flat."""
        numbers = volume[self._voxels]
        if self._first is None:
            self._first = numbers
        same = numbers == self._first
        if not same.all():
            self._voxels, self._first = self._voxels[same], self._first[same]
            self.still = self.still[same]


class Gaps:
    """Non-finite numbers at some voxels: where they are, and the mean of the finite ones.

    Flags are kept for volumes with gaps only, eight voxels to the byte.
    """

    def __init__(self, voxels: NDArray[np.intp]) -> None:
        self._voxels = voxels
        self._flags: dict[int, NDArray[np.uint8]] = {}
        self._sum = np.zeros(len(voxels))
        self.watched = 0

    def watch(self, volume: NDArray[Any]) -> None:
        """Take in the next volume, flat."""
        # As float32, in which it is sampled: what is too large for that is a gap as well.
        with np.errstate(over="ignore"):
            numbers = volume[self._voxels].astype(np.float32)
        finite = np.isfinite(numbers)
        if not finite.all():
            self._flags[self.watched] = np.packbits(~finite)
            numbers[~finite] = 0
        self._sum += numbers
        self.watched += 1

    @property
    def volumes(self) -> tuple[int, ...]:
        """Volumes with gaps, counted from the first one watched."""
        return tuple(self._flags)

    def missing(self, volume: int) -> NDArray[np.bool_]:
        """Return which voxels have no finite value in a volume."""
        if volume not in self._flags:
            return np.zeros(len(self._voxels), bool)
        return np.unpackbits(self._flags[volume], count=len(self._voxels)).astype(bool)

    def counts(self) -> NDArray[np.int64]:
        """Return in how many volumes each voxel is missing."""
        total = np.zeros(len(self._voxels), np.int64)
        for volume in self._flags:
            total += self.missing(volume)
        return total

    def dead(self) -> NDArray[np.bool_]:
        """Return which voxels are missing throughout."""
        return np.asarray(self.counts() == self.watched)

    def means(self) -> Array:
        """Return each voxel's mean over its finite values, 0 where there are none."""
        finite = self.watched - self.counts()
        return (self._sum / np.maximum(finite, 1)).astype(np.float32)
