"""A sample of the suite -> what the encoder is given, by the participant level's own verbs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.brainmarks.space import TEMPLATE, suite_grid
from slimbrain_app.embedding import list_views, read_view
from slimbrain_app.errors import RunRefused
from slimbrain_app.model.packages import Package, load_extractor
from slimbrain_app.prepare import prepare_volumes
from slimbrain_app.prepare.confounds import Confounds
from slimbrain_app.prepare.parallel import workers
from slimbrain_app.prepare.reading import Header
from slimbrain_app.prepare.store import count_frames
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Contract, Notice, PreparedRun, RepetitionTime, Run
from slimbrain_app.settings import Rank

Array = NDArray[np.float32]

WINDOWS = 8
# The suite knows nothing of motion.
_RANK = Rank(windows=WINDOWS, fd_threshold=0)
_RUN = "sample"


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """The selected windows of a sample, best first.

    Attributes
    ----------
    frames : ndarray, float32, shape (windows, channels, frames, voxels)
    voxels : ndarray of int, shape (voxels,)
        Flat index on the model grid.
    notices : tuple of Notice
    """

    frames: Array
    voxels: NDArray[np.int32]
    notices: tuple[Notice, ...]


class SampleVolumes:
    """A sample as a reader of its file would see it: float32, 0 outside the brain."""

    def __init__(self, rows: Array, mask: NDArray[np.bool_]) -> None:
        self._rows = rows
        self._mask = mask
        self.header = Header(
            grid=suite_grid(),
            volumes=len(rows),
            dtype=np.dtype(np.float32),
            slope=1.0,
            inter=0.0,
        )

    def batches(self, first: int, buffers: Sequence[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Fill ``buffers`` in turn with the volumes from ``first`` on; yield what was filled."""
        size = len(buffers[0])
        for start, buffer in zip(range(first, len(self._rows), size), cycle(buffers)):
            rows = self._rows[start : start + size]
            filled = buffer[: len(rows)]
            filled[...] = 0
            filled[:, self._mask] = rows
            yield filled


def read_sample(
    rows: Array, tr: float, mask: NDArray[np.bool_], way: tuple[Path, ...], package: Package
) -> Windows:
    """Prepare and rank a sample, and read its selected windows.

    Parameters
    ----------
    rows : ndarray, float32, shape (volumes, voxels)
        Values as they were before they were normalised.
    tr : float
        Seconds between volumes.
    mask : ndarray of bool, shape (z, y, x)
        As `read_suite_mask` returns it.
    way : tuple of Path
        As `find_way` returns it.

    Raises
    ------
    RunRefused
        ``mask-mismatch`` for rows of another space; ``nan-volumes``, ``tr-range``, and what
        `prepare_volumes` refuses.
    """
    _check_sample(rows, tr, mask)
    contract = package.contract
    rows, notices = _fill_window(rows, tr, contract)
    with TemporaryDirectory(prefix="slimbrain_") as work:
        prepared = _prepare(rows, tr, mask, way, Path(work))
        ranked = rank_run(prepared, contract, load_extractor(package), _RANK, 0, _RUN)
        views = list_views(ranked, 1, count_frames(prepared, contract.frame_time), contract)
        with workers():  # So that bits are those of other places.
            frames = np.stack([read_view(prepared, contract, view) for view in views])
        voxels = np.load(prepared.folder / "voxels.npy")
    return Windows(frames, voxels, (*notices, *prepared.notices, *ranked.notices))


def _check_sample(rows: Array, tr: float, mask: NDArray[np.bool_]) -> None:
    voxels = np.count_nonzero(mask)
    if rows.shape[1:] != (voxels,):
        raise RunRefused(
            "mask-mismatch",
            file=_RUN,
            expected=f"{voxels:,} voxels in each volume",
            found=f"shape {rows.shape}",
            advice="make the dataset anew, in the suite's space mni",
        )
    if not np.isfinite(rows).all():
        raise RunRefused(
            "nan-volumes",
            file=_RUN,
            expected="finite values throughout, as all samples of a batch share their voxels",
            found=f"{np.count_nonzero(~np.isfinite(rows)):,} others",
            advice="leave the sample out of the dataset",
        )
    if not 0.1 <= tr <= 10:
        raise RunRefused(
            "tr-range",
            file=_RUN,
            expected="a repetition time between 0.1 and 10 s",
            found=f"{tr:g} s",
            advice="correct tr in the dataset",
        )


def _fill_window(rows: Array, tr: float, contract: Contract) -> tuple[Array, tuple[Notice, ...]]:
    """Go on with a sample that is too short for a window by its mirror image in time."""
    needed = math.ceil(contract.span_seconds / tr - 1e-6) + 1
    if len(rows) >= needed:
        return rows, ()
    message = (
        f"{len(rows)} volumes of {tr:g} s are shorter than a window of "
        f"{contract.window_seconds:g} s: they go on mirrored in time"
    )
    longer = np.pad(rows, ((0, needed - len(rows)), (0, 0)), mode="reflect")
    return longer, (Notice(code="mirrored", message=message),)


def _prepare(
    rows: Array, tr: float, mask: NDArray[np.bool_], way: tuple[Path, ...], work: Path
) -> PreparedRun:
    """Prepare rows as an image of them would be, that lies in the suite's space."""
    run = Run(
        entities=(("sub", _RUN),),
        dataset=work,
        bold=work / _RUN,
        mask=work / "mask",
        confounds=None,
        sidecars=(),
        transforms=way,
        space=TEMPLATE,
        rung=4 if way else 0,
        interpolations=2,
        repetition_time=RepetitionTime(seconds=tr, origin="sidecar"),
        notices=(),
    )
    volumes, still = SampleVolumes(rows, mask), Confounds(None, 0, ())
    return prepare_volumes(run, volumes, mask.T, still, work / "prepared", {})
