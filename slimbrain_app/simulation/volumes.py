"""The short way to a prepared run: volumes are prepared as they are made, and none is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.bids.outputs import name_output
from slimbrain_app.bids.spaces import lies_on_model_grid
from slimbrain_app.prepare import prepare_volumes
from slimbrain_app.prepare.confounds import Confounds
from slimbrain_app.prepare.grid import Grid
from slimbrain_app.prepare.reading import Header
from slimbrain_app.records import Contract, RepetitionTime, Run
from slimbrain_app.simulation.images import STEP, store_values
from slimbrain_app.simulation.nuisance import displacement
from slimbrain_app.simulation.run import SPACE, Scan


class ScannedVolumes:
    """A scan as a reader of its file would see it: the same numbers, in the same order."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.header = Header(
            grid=Grid(scan.anatomy.shape, scan.anatomy.affine),
            volumes=scan.volumes,
            dtype=np.dtype(np.int16),
            slope=STEP,
            inter=0.0,
        )

    def batches(self, first: int, buffers: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Fill ``buffers`` in turn with the volumes from ``first`` on; yield what was filled."""
        volumes = chain.from_iterable(store_values(batch) for batch in self._scan.batches)
        left = islice(volumes, first, None)
        for buffer in cycle(buffers):
            batch = list(islice(left, len(buffer)))
            if not batch:
                return
            filled = buffer[: len(batch)]
            filled[...] = 0
            filled.reshape(len(batch), -1)[:, self._scan.anatomy.voxels] = batch
            yield filled


def prepare_scan(folder: Path, label: str, scan: Scan, making: Mapping[str, Any]) -> Path:
    """Prepare a person's scan into a dataset; return the prepared run's folder.

    Raises
    ------
    RunRefused
        As `prepare_volumes`.
    """
    run = _name_run(folder, label, scan)
    target = folder / name_output(run, Contract(), "prepared", "")
    mask = scan.anatomy.fill_volumes(scan.anatomy.brain).T
    moved = displacement(np.diff(scan.motion, axis=0, prepend=scan.motion[:1]))
    volumes, confounds = ScannedVolumes(scan), Confounds(moved, 0, ())
    prepare_volumes(run, volumes, mask, confounds, target, making)
    return target


def _name_run(folder: Path, label: str, scan: Scan) -> Run:
    """Return what the scan would be if it were written; nothing of it is on disk."""
    entities = (("sub", label), ("task", "rest"), ("run", "01"))
    stem = folder / f"sub-{label}" / "func" / f"sub-{label}_task-rest_run-01_space-{SPACE}_desc"
    return Run(
        entities=entities,
        dataset=folder,
        bold=stem.with_name(f"{stem.name}-preproc_bold.nii.gz"),
        mask=stem.with_name(f"{stem.name}-brain_mask.nii.gz"),
        confounds=None,
        sidecars=(),
        transforms=(),
        space=SPACE,
        rung=0,
        interpolations=1 if lies_on_model_grid(scan.anatomy.affine) else 2,
        repetition_time=RepetitionTime(seconds=scan.tr, origin="sidecar"),
        notices=(),
    )
