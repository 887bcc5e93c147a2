"""Small prepared runs to train on, written in a blink."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from slimbrain_app.prepare import store
from slimbrain_app.prepare.grid import model_grid
from slimbrain_app.records import Contract, PreparedRun, Recording

MakeRecordings = Callable[..., list[Recording]]


def _small_brain(random: np.random.Generator) -> np.ndarray:
    """Every other voxel along each axis of 3 x 2 x 2 final cells, with a few lost at random."""
    brain = np.zeros(model_grid().shape, bool)
    brain[32:80:2, 32:64:2, 32:64:2] = True
    return np.flatnonzero(brain & (random.random(brain.shape) > 0.02))


def _series_of(voxels: np.ndarray, volumes: int, random: np.random.Generator) -> np.ndarray:
    """Slow time courses, each of a few neighbouring places, on anatomy, with noise."""
    x, y, z = np.unravel_index(voxels, model_grid().shape)
    parcels = ((x // 16) * 6 + y // 16) * 6 + z // 16
    _, parcel = np.unique(parcels, return_inverse=True)
    courses = random.standard_normal((volumes, parcel.max() + 1))
    courses[1:] += courses[:-1]
    courses -= courses.mean(axis=0)
    anatomy = random.normal(10_000, 1_500, len(voxels))
    noise = random.normal(0, 60, (volumes, len(voxels)))
    return (anatomy + 100 * courses[:, parcel] + noise).astype(np.float32)


def _write_prepared(folder: Path, volumes: int, tr: float, seed: int) -> PreparedRun:
    random = np.random.default_rng(seed)
    voxels = _small_brain(random)
    series = _series_of(voxels, volumes, random)
    mean, scale = series.mean(axis=0), store.step_of(series.std(axis=0, dtype=np.float64))
    levels, clipped = store.quantise(series, mean, scale)
    folder.mkdir(parents=True)
    np.save(folder / "voxels.npy", voxels.astype(np.int32))
    np.save(folder / "mean.npy", mean)
    np.save(folder / "scale.npy", scale)
    np.save(folder / "signal.npy", levels)
    record = PreparedRun(
        folder=folder,
        volumes=volumes,
        voxels=len(voxels),
        tr=tr,
        dummy_scans=0,
        coverage=1.0,
        mean=float(series.mean()),
        deviation=float(series.std()),
        constant_voxels=0,
        clipped_values=clipped,
        replaced_values=0,
        displacement=tuple(float(value) for value in 0.2 * random.random(volumes)),
        checksums=(),
        fingerprint=f"{seed:064x}",
        notices=(),
    )
    grid = {"shape": model_grid().shape, "affine": model_grid().affine.tolist()}
    making = {"grid": grid, "contract": Contract().version, "format": 1}
    store.write_record(folder, record, making)
    return record


def _write_recordings(
    folder: Path,
    people: int,
    *,
    runs_each: int = 1,
    volumes: int = 60,
    tr: float = 2.0,
    dataset: str = "made",
    sites: tuple[str, ...] = ("east", "west"),
    seed: int = 0,
) -> list[Recording]:
    recordings = []
    for number in range(people * runs_each):
        person, run = f"{number // runs_each + 1:02}", number % runs_each + 1
        name = f"sub-{person}_task-rest_run-{run}"
        kept = f"{name}_space-MNI152NLin2009cAsym_desc-slimbrain_prepared"
        where = folder / f"sub-{person}" / "func" / kept
        recordings.append(
            Recording(
                dataset=dataset,
                participant=person,
                run=name,
                prepared=_write_prepared(where, volumes, tr, seed + number),
                site=sites[number // runs_each % len(sites)],
            )
        )
    return recordings


@pytest.fixture(scope="session")
def prepared_runs() -> MakeRecordings:
    """Write prepared runs below a folder, as SlimBrain's outputs lie: (folder, people, ...).

    A run has about 6,000 voxels in 12 final cells; 60 volumes of 2 s are 164 frames of 0.72 s, or
    8 candidate windows.
    """
    return _write_recordings


@pytest.fixture(scope="session")
def drill() -> ModuleType:
    """The small training of ``drill.py``, which is also a script to start and kill."""
    spec = importlib.util.spec_from_file_location("drill", Path(__file__).with_name("drill.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["drill"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
