"""A run becomes a prepared run: its brain voxels on the model grid, in one pass over its file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slimbrain_app import __version__, files
from slimbrain_app.errors import RunRefused
from slimbrain_app.prepare import parallel, store
from slimbrain_app.prepare.confounds import Confounds, read_confounds
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.prepare.placement import (
    Placement,
    place_mask,
    place_run,
    require_coverage,
)
from slimbrain_app.prepare.reading import Volumes, open_series, refuse_changed, stamp
from slimbrain_app.prepare.rows import Pass, Rows, mend_gaps, sample_rows
from slimbrain_app.prepare.statistics import Gaps, moments_of
from slimbrain_app.records import Contract, Notice, PreparedRun, Run
from slimbrain_app.settings import Prepare

Array = NDArray[np.float32]
Moment = NDArray[np.float64]
Mask = NDArray[np.bool_]

_COVERAGE_NOTICED = 0.85
_GAPS_ALLOWED = 0.01
_SHORTEST_EDGE, _LONGEST_EDGE = 0.5, 6.0
_FORMAT = 1
_BLOCK = 16


@dataclass(frozen=True, eq=False)
class _Voxels:
    """The voxels that stay: places on the model grid (flat), means, deviations over time.

    ``kept`` marks them among the columns of the rows; ``step`` is the unit of int8.
    """

    kept: Mask
    places: NDArray[np.intp]
    mean: Array
    deviation: NDArray[np.float64]
    step: Array
    constant: int
    dead: int
    coverage: float


def prepare_run(run: Run, folder: Path, settings: Prepare, minimum_seconds: float) -> PreparedRun:
    """Bring a run's brain voxels onto the model grid and write them to ``folder``.

    The series is read once, front to back; memory holds a few of its volumes and, up to half a
    GiB, what comes of them. As many threads work as BLAS is allowed, up to four; the result does
    not depend on their number.

    Parameters
    ----------
    folder : Path
        Where the prepared run will stand; replaced if it is there.
    minimum_seconds : float
        What must lie between the first and the last volume, dummy scans left out: the time
        from a window's first frame to its last.

    Raises
    ------
    RunRefused
        too-short, bad-confounds, empty-mask, low-coverage, nan-volumes, flat, not-4d,
        unreadable, truncated, still-written, missing-content, denied, transform-missing,
        transform-bad.
    """
    stamps = _stamp_sources(run)
    confounds = check_length(run, settings, minimum_seconds)
    name = run.relative(run.bold)
    with files.whole_folder(folder) as temporary, open_series(run.bold, name) as series:
        placement = place_run(run, series.header.grid)
        record = _write_arrays(temporary, run, series, placement, confounds)
        checksums = _sum_sources(run, series.sha256)
        making = asdict(settings)
        record = replace(record, folder=folder, checksums=checksums, stamps=stamps)
        _refuse_changed(run, stamps)
        record = sign(record, making)
        store.write_record(temporary, record, _describe_making(run, stamps, making))
    return record


def prepare_volumes(
    run: Run,
    volumes: Volumes,
    mask: Mask,
    confounds: Confounds,
    folder: Path,
    making: Mapping[str, Any],
) -> PreparedRun:
    """Prepare volumes that stand in no file, as `prepare_run` would from a file of them.

    Parameters
    ----------
    run : Run
        What the files would be; none of them is read.
    mask : ndarray of bool, shape (x, y, z)
        The brain, on the volumes' grid.
    making : mapping
        What the volumes were made from, fit for JSON: hashed into the fingerprint, and kept.

    Raises
    ------
    RunRefused
        empty-mask, low-coverage, nan-volumes, flat.
    """
    with files.whole_folder(folder) as temporary:
        placement = place_mask(run, mask, volumes.header.grid)
        record = _write_arrays(temporary, run, volumes, placement, confounds)
        record = sign(replace(record, folder=folder), making)
        store.write_record(temporary, record, _describe_making(run, (), making))
    return record


def check_length(run: Run, settings: Prepare, minimum_seconds: float) -> Confounds:
    """Refuse a run that is too short, by its header and its confounds, which are returned.

    Raises
    ------
    RunRefused
        too-short, bad-confounds, not-4d, unreadable, missing-content, denied.
    """
    with open_series(run.bold, run.relative(run.bold)) as series:
        volumes = series.header.volumes
    confounds = _read_confounds(run, settings, volumes)
    _judge_length(run, confounds.dummy_scans, volumes, minimum_seconds)
    return confounds


def _read_confounds(run: Run, settings: Prepare, volumes: int) -> Confounds:
    """Read motion and dummy scans of all volumes; dummy scans given by the settings win."""
    name = None if run.confounds is None else run.relative(run.confounds)
    confounds = read_confounds(run.confounds, name, volumes)
    if settings.dummy_scans is None:
        return confounds
    return replace(confounds, dummy_scans=min(settings.dummy_scans, volumes))


def _judge_length(run: Run, dummy_scans: int, volumes: int, minimum_seconds: float) -> None:
    tr = run.repetition_time.seconds
    kept = volumes - dummy_scans
    seconds = max(kept - 1, 0) * tr
    # A microsecond, so that rounding does not refuse what just fits. One volume has no time.
    if kept < 2 or seconds < minimum_seconds - 1e-6:
        without = f" after {dummy_scans} dummy scans" if dummy_scans else ""
        raise RunRefused(
            "too-short",
            file=run.relative(run.bold),
            expected=f"at least {minimum_seconds:.2f} s from first to last volume, one window",
            found=f"{seconds:.2f} s: {kept} volumes of {tr:g} s{without}",
            advice="leave this run out",
        )


def _write_arrays(
    folder: Path, run: Run, volumes: Volumes, placement: Placement, confounds: Confounds
) -> PreparedRun:
    """Write the arrays of a prepared run; return its record, not signed yet."""
    header, dummy_scans = volumes.header, confounds.dummy_scans
    kept = header.volumes - dummy_scans
    spare = folder / "rows.float32"
    rows = Rows(spare, kept, len(placement.nearest))
    with parallel.workers() as threads:
        passed = sample_rows(volumes, placement, dummy_scans, rows, threads)
        _judge_volumes(run, passed, dummy_scans)
        mend_gaps(passed, header, placement, rows)
        # A row of the middle, since the first ones may be brighter.
        origin = rows.part(kept // 2, 1)[0].copy()
        moments = moments_of(origin, rows.parts(_BLOCK), threads)
        voxels = _settle_voxels(run, passed, placement, *moments)
        clipped = _write_signal(folder, rows, voxels, threads)
    spare.unlink(missing_ok=True)
    return _record(run, folder, confounds, placement, passed, voxels, clipped)


def _judge_volumes(run: Run, passed: Pass, first: int) -> None:
    """Refuse runs with volumes that are zero everywhere or have too many gaps."""
    lost = sorted({*passed.empty, *_gappy_volumes(passed.gaps)})
    if lost:
        listed = ", ".join(str(first + volume) for volume in lost[:10])
        raise RunRefused(
            "nan-volumes",
            file=run.relative(run.bold),
            expected=f"finite values in {1 - _GAPS_ALLOWED:.0%} of the mask in every volume, "
            "not all zero",
            found=f"{len(lost)} without, counted from 0: {listed}"
            + (", ..." if len(lost) > 10 else ""),
            advice="make the series anew; volumes can't be left out of the middle",
        )


def _gappy_volumes(gaps: Gaps) -> Iterator[int]:
    if gaps.volumes:
        alive = ~gaps.dead()
        allowed = _GAPS_ALLOWED * np.count_nonzero(alive)
        for volume in gaps.volumes:
            if np.count_nonzero(gaps.missing(volume) & alive) > allowed:
                yield volume


def _settle_voxels(
    run: Run, passed: Pass, placement: Placement, mean: Moment, deviation: Moment
) -> _Voxels:
    """Leave out voxels that were never finite, still those that never changed."""
    # Without gaps nothing was watched for them.
    dead = placement.brain[np.flatnonzero(passed.gaps.dead())]
    constant = placement.brain[passed.stillness.still]
    kept = ~np.isin(placement.nearest, dead)
    mask = placement.mask.copy()
    mask[mask] = kept
    coverage = require_coverage(run, mask)
    moving = ~np.isin(placement.nearest, constant)[kept]
    mean, deviation = mean[kept], deviation[kept]
    step = store.step_of(np.where(moving, deviation, 0))
    if not step.any():
        raise RunRefused(
            "flat",
            file=run.relative(run.bold),
            expected="voxels that change over time",
            found="the same values in every volume",
            advice="check what wrote this file",
        )
    return _Voxels(
        kept=kept,
        places=np.flatnonzero(mask),
        mean=mean.astype(np.float32),
        deviation=deviation,
        step=step,
        constant=len(constant),
        dead=len(dead),
        coverage=coverage,
    )


def _write_signal(folder: Path, rows: Rows, voxels: _Voxels, threads: int) -> int:
    """Write the arrays of a prepared run; return how many values were clipped."""
    np.save(folder / "voxels.npy", voxels.places.astype(np.int32))
    np.save(folder / "mean.npy", voxels.mean)
    np.save(folder / "scale.npy", voxels.step)

    def work(part: Array) -> tuple[NDArray[np.int8], int]:
        kept = part if voxels.kept.all() else part[:, voxels.kept]
        return store.quantise(kept, voxels.mean, voxels.step)

    clipped = 0
    with (folder / "signal.npy").open("wb") as signal:
        store.write_signal_header(signal, rows.volumes, len(voxels.places))
        for levels, number in parallel.map_in_order(work, rows.parts(_BLOCK), threads):
            levels.tofile(signal)
            clipped += number
    return clipped


def _record(
    run: Run,
    folder: Path,
    confounds: Confounds,
    placement: Placement,
    passed: Pass,
    voxels: _Voxels,
    clipped: int,
) -> PreparedRun:
    mean = float(np.mean(voxels.mean, dtype=np.float64))
    spread = voxels.deviation**2 + (voxels.mean - mean) ** 2
    replaced = int(passed.gaps.counts()[~passed.gaps.dead()].sum())
    return PreparedRun(
        folder=folder,
        volumes=passed.gaps.watched,
        voxels=len(voxels.places),
        tr=run.repetition_time.seconds,
        dummy_scans=confounds.dummy_scans,
        coverage=voxels.coverage,
        mean=mean,
        deviation=float(np.sqrt(spread.mean())),
        constant_voxels=voxels.constant,
        clipped_values=clipped,
        replaced_values=replaced,
        displacement=confounds.kept_displacement,
        checksums=(),
        fingerprint="",
        notices=(*confounds.notices, *_list_notices(run, placement, voxels, replaced)),
    )


def _list_notices(
    run: Run, placement: Placement, voxels: _Voxels, replaced: int
) -> Iterator[Notice]:
    bold, mask = run.relative(run.bold), run.relative(run.mask)
    if min(placement.edges) < _SHORTEST_EDGE or max(placement.edges) > _LONGEST_EDGE:
        message = f"voxel edges of {' x '.join(f'{edge:.4g}' for edge in placement.edges)} mm"
        yield Notice(code="voxel-size", message=message, file=bold)
    if voxels.constant:
        message = f"{voxels.constant} voxels inside the mask never change; they are set to zero"
        yield Notice(code="constant-voxels", message=message, file=bold)
    if replaced or voxels.dead:
        message = (
            f"{replaced} non-finite values were replaced by their voxel's mean; "
            f"{voxels.dead} voxels were never finite and left the mask"
        )
        yield Notice(code="non-finite", message=message, file=bold)
    if voxels.coverage < _COVERAGE_NOTICED:
        message = f"the mask covers {voxels.coverage:.0%} of the template's brain"
        yield Notice(code="low-coverage", message=message, file=mask)


def _sum_sources(run: Run, bold_sha256: str) -> tuple[tuple[str, str], ...]:
    """Return name and checksum of every source; that of the series is known from reading it."""
    return tuple(
        (run.relative(path), bold_sha256 if path == run.bold else files.sha256_of(path))
        for path in run.sources
    )


def _stamp_sources(run: Run) -> tuple[tuple[str, int, int], ...]:
    return tuple(stamp(path, run.relative(path)) for path in run.sources)


def _refuse_changed(run: Run, stamps: tuple[tuple[str, int, int], ...]) -> None:
    """Refuse what was made of two states of a source."""
    for before, now in zip(stamps, _stamp_sources(run), strict=True):
        if now != before:
            raise refuse_changed(before[0])


def sign(record: PreparedRun, settings: Mapping[str, Any]) -> PreparedRun:
    """Add the hash of all that made the record."""
    making = {
        "format": _FORMAT,
        "contract": Contract().version,
        "checksums": record.checksums,
        "settings": settings,
        "tr": record.tr,
    }
    digest = hashlib.sha256(json.dumps(making, sort_keys=True).encode()).hexdigest()
    return replace(record, fingerprint=digest)


def _describe_making(
    run: Run, stamps: tuple[tuple[str, int, int], ...], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what else `run.json` holds: the grid, the sources' state, settings, software."""
    model = model_grid()
    return {
        "grid": {"shape": model.shape, "affine": model.affine.tolist()},
        "sources": [
            # In seconds as `os.stat` reckons them.
            {"file": name, "size": size, "modified": ns // 10**9 + 1e-9 * (ns % 10**9)}
            for name, size, ns in stamps
        ],
        "ladder": {"space": run.space, "rung": run.rung, "interpolations": run.interpolations},
        "settings": dict(settings),
        "contract": Contract().version,
        "format": _FORMAT,
        "software": {"SlimBrain": __version__, "numpy": np.__version__},
    }
