"""From sources, each a time course and its weights in the voxels, to a stream of BOLD volumes.

What drives the brain is left to the caller: simulated networks or recorded regions alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from slimbrain_app.simulation.anatomy import Anatomy, Floats

# Volumes held at once.
_BATCH = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Time courses and how strongly each voxel shows them.

    Attributes
    ----------
    weights : csr_array or ndarray, float32, shape (voxels, sources)
        Scanner units per unit of the time course.
    series : ndarray, shape (volumes, sources)
    """

    weights: csr_array | Floats
    series: NDArray[np.float64]

    def scale(self, factor: float) -> Sources:
        """Return the same sources, shown more or less strongly."""
        return replace(self, weights=self.weights * np.float32(factor))

    def show(self, voxels: NDArray[np.intp]) -> Floats:
        """Return what some voxels show, shape (volumes, voxels)."""
        return np.asarray((self.weights[voxels] @ self.series.T.astype(np.float32)).T)


def stream_bold(
    anatomy: Anatomy, sources: tuple[Sources, ...], noise: Iterator[Floats]
) -> Iterator[Floats]:
    """Yield batches (volumes, voxels) of signal at rest plus sources plus noise, scanner units."""
    volumes = len(sources[0].series)
    for start in range(0, volumes, _BATCH):
        stop = min(start + _BATCH, volumes)
        batch = np.stack(list(islice(noise, stop - start)))
        batch += anatomy.rest
        for source in sources:
            batch += (source.weights @ source.series[start:stop].T.astype(np.float32)).T
        yield batch
