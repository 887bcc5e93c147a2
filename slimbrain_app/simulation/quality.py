"""How strong the brain and all else must be for a given temporal signal-to-noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.errors import CallRefused
from slimbrain_app.simulation.anatomy import Anatomy
from slimbrain_app.simulation.bold import Sources
from slimbrain_app.simulation.noise import expect_noise

# So many grey voxels tell their median.
_SAMPLE = 1000
_STRONGEST = 1000.0
# Deviation of a median grey voxel's own signal, share of its signal at rest.
_AMPLITUDE = 0.011


def grey_voxels(anatomy: Anatomy) -> NDArray[np.intp]:
    """Return which voxels' temporal signal-to-noise is meant: in the mask, and mostly grey."""
    return np.flatnonzero(anatomy.brain & (anatomy.grey > 0.5))


def amplify(anatomy: Anatomy, brain: Sources) -> Sources:
    """Make the signal of the median grey voxel, of those that show any, as strong as is usual."""
    voxels = _sample_grey(anatomy)
    share = brain.show(voxels).std(axis=0) / anatomy.rest[voxels]
    return brain.scale(_AMPLITUDE / float(np.median(share[share > 0])))


def find_level(anatomy: Anatomy, brain: Sources, nuisance: Sequence[Sources], tsnr: float) -> float:
    """Return the factor on nuisance and noise with which the median grey voxel has ``tsnr``.

    Brain, nuisance and noise are taken for independent.

    Raises
    ------
    CallRefused
        ``usage`` if the brain alone varies more than that.
    """
    from scipy.optimize import brentq

    voxels = _sample_grey(anatomy)
    own = brain.show(voxels).var(axis=0)
    other = expect_noise(anatomy)[voxels] ** 2
    for source in nuisance:
        other = other + source.show(voxels).var(axis=0)

    def exceed(level: float) -> float:
        deviation = np.sqrt(own + level**2 * other)
        return float(np.median(deviation / anatomy.rest[voxels])) - 1 / tsnr

    if exceed(0) >= 0:
        raise CallRefused(
            "usage",
            expected=f"a temporal signal-to-noise of {tsnr:.0f} in grey matter",
            found=f"a brain whose own signal leaves {1 / (exceed(0) + 1 / tsnr):.0f} at most",
            advice="ask for less with --tsnr",
        )
    return float(brentq(exceed, 0, _STRONGEST))


def _sample_grey(anatomy: Anatomy) -> NDArray[np.intp]:
    voxels = grey_voxels(anatomy)
    return voxels[:: max(1, len(voxels) // _SAMPLE)]
