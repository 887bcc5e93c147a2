"""One run: its sources, and its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.files import write_json, write_text
from slimbrain_app.simulation.anatomy import Anatomy
from slimbrain_app.simulation.bold import Sources, stream_bold
from slimbrain_app.simulation.confounds import SignalTrace, describe_confounds, tabulate_confounds
from slimbrain_app.simulation.description import describe_series
from slimbrain_app.simulation.images import write_series, write_volume
from slimbrain_app.simulation.noise import stream_noise
from slimbrain_app.simulation.nuisance import draw_drift, draw_motion, draw_physiology, move_edges

_SPACE = "space-MNI152NLin2009cAsym"


def write_run(
    stem: Path,
    anatomy: Anatomy,
    brain: Sources,
    tr: float,
    restlessness: float,
    generator: np.random.Generator,
) -> Path:
    """Write a run whose networks, or recorded regions, are given; return its BOLD file.

    ``stem`` is the folder and the name up to the entities that tell the run's files apart. Data
    come before sidecars. TR in s; ``restlessness`` is relative to a typical person's head motion.
    """
    volumes = len(brain.series)
    motion = draw_motion(volumes, tr, restlessness, generator)
    sources = (
        brain,
        move_edges(anatomy, motion),
        draw_physiology(anatomy, volumes, tr, generator),
        draw_drift(anatomy, volumes, generator),
    )
    trace = SignalTrace(anatomy)
    batches = stream_bold(anatomy, sources, stream_noise(anatomy, tr, generator))
    series = _named(stem, f"{_SPACE}_desc-preproc_bold.nii.gz")
    write_series(series, anatomy, trace.watch(batches), volumes, tr)
    write_json(_named(stem, f"{_SPACE}_desc-preproc_bold.json"), describe_series(tr))
    _write_references(stem, anatomy)
    _write_confounds(stem, trace, motion)
    return series


def _write_references(stem: Path, anatomy: Anatomy) -> None:
    mask, reference = f"{_SPACE}_desc-brain_mask", f"{_SPACE}_boldref"
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
