"""One run: its sources, and its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from slimbrain_app.files import write_json, write_text
from slimbrain_app.simulation.anatomy import Anatomy, Floats
from slimbrain_app.simulation.bold import Sources, stream_bold
from slimbrain_app.simulation.confounds import SignalTrace, describe_confounds, tabulate_confounds
from slimbrain_app.simulation.description import describe_series
from slimbrain_app.simulation.images import write_series, write_volume
from slimbrain_app.simulation.noise import SPREAD, clear_noise, stream_noise
from slimbrain_app.simulation.nuisance import draw_drift, draw_motion, draw_physiology, move_edges
from slimbrain_app.simulation.quality import find_level

SPACE = "MNI152NLin2009cAsym"


@dataclass(frozen=True, kw_only=True)
class Scanner:
    """How much a scanner adds to what the brain does.

    Attributes
    ----------
    tsnr : float or None
        Mean over deviation in time of the median grey voxel, to which noise and nuisance are
        scaled; None leaves them as on a usual scanner.
    noisiness : float
        A further factor on them.
    nuisance : float
        Strength of motion, physiology and drift relative to the noise.
    spread : float
        Deviation of the Gaussian that makes noise smooth, mm.
    apart : bool
        Noise shows nothing at the places of the brain's sources, whose series were recorded with
        noise of their own.
    """

    tsnr: float | None = None
    noisiness: float = 1.0
    nuisance: float = 1.0
    spread: float = SPREAD
    apart: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A run that has yet to be streamed, once.

    Attributes
    ----------
    tr : float
        s
    motion : ndarray, shape (volumes, 6)
        The head's position, mm and rad.
    batches : iterator of ndarray, float32, shape (some volumes, voxels)
        BOLD in scanner units, in time.
    """

    anatomy: Anatomy
    tr: float
    motion: NDArray[np.float64]
    batches: Iterator[Floats]

    @property
    def volumes(self) -> int:
        return len(self.motion)


def scan_brain(
    anatomy: Anatomy,
    brain: Sources,
    tr: float,
    restlessness: float,
    generator: np.random.Generator,
    scanner: Scanner = Scanner(),
) -> Scan:
    """Scan a brain whose networks, or recorded regions, are given.

    Parameters
    ----------
    tr : float
        s
    restlessness : float
        Relative to a typical person's head motion.

    Raises
    ------
    CallRefused
        ``usage`` if the brain alone varies too much for the scanner's ``tsnr``.
    """
    volumes = len(brain.series)
    motion = draw_motion(volumes, tr, restlessness, generator)
    drawn = (
        move_edges(anatomy, motion),
        draw_physiology(anatomy, volumes, tr, generator),
        draw_drift(anatomy, volumes, generator),
    )
    nuisance = [source.scale(scanner.nuisance) for source in drawn]
    level = scanner.noisiness
    if scanner.tsnr is not None:
        level *= find_level(anatomy, brain, nuisance, scanner.tsnr)
    sources = (brain, *(source.scale(level) for source in nuisance))
    noise = stream_noise(anatomy, tr, generator, scanner.spread)
    if scanner.apart:
        # Sources without a series were not recorded: there noise stays.
        noise = clear_noise(noise, csr_array(brain.weights[:, brain.series.any(axis=0)]))
    added = (np.float32(level) * volume for volume in noise)
    batches = stream_bold(anatomy, sources, added)
    return Scan(anatomy=anatomy, tr=tr, motion=motion, batches=batches)


def write_scan(stem: Path, scan: Scan) -> Path:
    """Write a run as fMRIPrep would; return its BOLD file.

    ``stem`` is the folder and the name up to the entities that tell the run's files apart. Data
    come before sidecars.
    """
    anatomy = scan.anatomy
    trace = SignalTrace(anatomy)
    series = _named(stem, f"space-{SPACE}_desc-preproc_bold.nii.gz")
    write_series(series, anatomy, trace.watch(scan.batches), scan.volumes, scan.tr)
    write_json(_named(stem, f"space-{SPACE}_desc-preproc_bold.json"), describe_series(scan.tr))
    _write_references(stem, anatomy)
    _write_confounds(stem, trace, scan.motion)
    return series


def _write_references(stem: Path, anatomy: Anatomy) -> None:
    mask, reference = f"space-{SPACE}_desc-brain_mask", f"space-{SPACE}_boldref"
    write_volume(_named(stem, f"{mask}.nii.gz"), anatomy, anatomy.brain.astype(np.uint8))
    write_json(_named(stem, f"{mask}.json"), {"Type": "Brain"})
    write_volume(_named(stem, f"{reference}.nii.gz"), anatomy, np.rint(anatomy.rest).astype("i2"))
    write_json(_named(stem, f"{reference}.json"), {"SkullStripped": True})


def _write_confounds(stem: Path, trace: SignalTrace, motion: NDArray[np.float64]) -> None:
    table = tabulate_confounds(trace, motion)
    text = table.to_csv(sep="\t", na_rep="n/a", float_format="%.8g", index=False)
    write_text(_named(stem, "desc-confounds_timeseries.tsv"), text)
    write_json(_named(stem, "desc-confounds_timeseries.json"), describe_confounds())


def _named(stem: Path, ending: str) -> Path:
    return stem.with_name(f"{stem.name}_{ending}")
