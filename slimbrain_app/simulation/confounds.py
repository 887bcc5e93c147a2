"""The confounds table as fMRIPrep writes it, reckoned from the series while it passes by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.simulation.anatomy import Anatomy, Floats
from slimbrain_app.simulation.nuisance import displacement

if TYPE_CHECKING:
    import pandas as pd

MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")
TISSUES = ("global_signal", "csf", "white_matter")
# Radius of the head for the root mean square displacement (Jenkinson 1999, FMRIB TR99MJ1), mm.
_SPHERE = 80.0


class SignalTrace:
    """Means over tissues and change between volumes, gathered batch by batch."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._brain = anatomy.brain
        self._masks = (
            anatomy.brain,
            anatomy.brain & (anatomy.fluid > 0.5),
            anatomy.brain & (anatomy.white > 0.8),
        )
        # DVARS is in thousandths of the brain's median.
        self._scale = 1000 / float(np.median(anatomy.rest[self._brain]))
        self._last: Floats | None = None
        self._means: list[NDArray[np.float64]] = []
        self._changes: list[float] = []

    def watch(self, batches: Iterable[Floats]) -> Iterator[Floats]:
        """Pass batches (volumes, voxels) on, having looked at them."""
        for batch in batches:
            self._add(batch)
            yield batch

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean of each of ``TISSUES``, shape (volumes, 3)."""
        return np.concatenate(self._means)

    @property
    def dvars(self) -> NDArray[np.float64]:
        """Root mean square change since the volume before, shape (volumes,); the first is NaN."""
        return np.array([np.nan, *self._changes[1:]])

    def _add(self, batch: Floats) -> None:
        means = [batch[:, mask].mean(axis=1, dtype=np.float64) for mask in self._masks]
        self._means.append(np.column_stack(means))
        brain = batch[:, self._brain]
        before = brain[:1] if self._last is None else self._last
        steps = np.diff(brain, axis=0, prepend=before)
        squares = np.square(steps).mean(axis=1, dtype=np.float64)
        self._changes.extend(self._scale * np.sqrt(squares))
        self._last = brain[-1:]


def tabulate_confounds(trace: SignalTrace, motion: NDArray[np.float64]) -> pd.DataFrame:
    """Lay out the confounds of a run, one row per volume; ``motion`` is of shape (volumes, 6)."""
    import pandas as pd

    columns: dict[str, NDArray[np.float64]] = {}
    for name, signal in zip(TISSUES, trace.means.T, strict=True):
        columns |= _expand(name, signal)
    columns["dvars"] = trace.dvars
    columns["std_dvars"] = trace.dvars / np.nanmedian(trace.dvars)
    steps = np.diff(motion, axis=0, prepend=np.full((1, 6), np.nan))
    columns["framewise_displacement"] = displacement(steps)
    columns["rmsd"] = _root_mean_square(steps)
    for name, parameter in zip(MOTION, motion.T, strict=True):
        columns |= _expand(name, parameter)
    return pd.DataFrame(columns)


def describe_confounds() -> dict[str, Any]:
    """Return the content of the table's JSON."""
    columns: dict[str, Any] = {name: {"Method": "Mean"} for name in TISSUES}
    columns["std_dvars"] = {"Description": "DVARS divided by its median over the run"}
    columns["framewise_displacement"] = {
        "Description": "Power's sum of absolute changes, rotations on a sphere of 50 mm",
        "Units": "mm",
    }
    return columns


def _expand(name: str, series: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    change = np.diff(series, prepend=np.nan)
    return {
        name: series,
        f"{name}_derivative1": change,
        f"{name}_power2": series**2,
        f"{name}_derivative1_power2": change**2,
    }


def _root_mean_square(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Displacement over a sphere (mm), for rotations small enough to add up."""
    shifts, turns = np.square(steps[:, :3]).sum(axis=1), np.square(steps[:, 3:]).sum(axis=1)
    return np.asarray(np.sqrt(_SPHERE**2 / 5 * 2 * turns + shifts))
