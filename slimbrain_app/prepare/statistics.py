"""What is gathered about a series while its volumes pass by, one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_FEW = 8
_ROUNDING = 1e-6


class Moments:
    """Mean and deviation of each voxel, from rows that are seen once."""

    def __init__(self, voxels: int) -> None:
        self._count = 0
        self._origin = np.zeros(voxels, np.float32)
        self._shifted = np.empty(voxels, np.float32)
        self._few = np.zeros((2, voxels), np.float32)
        self._sums = np.zeros((2, voxels))

    def add(self, row: Array) -> None:
        """Take in one row (voxels,); in what batches rows come makes no difference."""
        if not self._count:
            self._origin = row.copy()
        # Around the first row, sums stay small and lose no digits; a few fit into float32,
        # which is twice as fast.
        shifted = np.subtract(row, self._origin, out=self._shifted)
        self._few[0] += shifted
        shifted *= shifted
        self._few[1] += shifted
        self._count += 1
        if self._count % _FEW == 0:
            self._flush()

    def settle(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each voxel's mean and deviation, 0 where only rounding makes a difference."""
        self._flush()
        shift, squares = self._sums / self._count
        mean = self._origin + shift
        deviation = np.sqrt(np.maximum(squares - shift**2, 0))
        return mean, np.where(deviation > _ROUNDING * np.abs(mean), deviation, 0)

    def _flush(self) -> None:
        self._sums += self._few
        self._few[:] = 0


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

    def watch(self, volume: NDArray[Any]) -> bool:
        """Take in the next volume, flat; return whether it has gaps."""
        # As float32, in which it is sampled: what is too large for that is a gap as well.
        with np.errstate(over="ignore"):
            numbers = volume[self._voxels].astype(np.float32)
        finite = np.isfinite(numbers)
        whole = bool(finite.all())
        if not whole:
            self._flags[self.watched] = np.packbits(~finite)
            numbers[~finite] = 0
        self._sum += numbers
        self.watched += 1
        return not whole

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
