"""A dataset of real people's series by region, put back into voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import check_empty, sha256_of
from slimbrain_app.simulation.anatomy import Anatomy, load_anatomy
from slimbrain_app.simulation.bold import Sources
from slimbrain_app.simulation.description import describe_cohort
from slimbrain_app.simulation.enrolment import enrol
from slimbrain_app.simulation.nuisance import judge_restlessness
from slimbrain_app.simulation.parcels import weigh_parcels
from slimbrain_app.simulation.people import draw_restlessness
from slimbrain_app.simulation.quality import amplify
from slimbrain_app.simulation.recorded import Inputs, Volunteer, read_series
from slimbrain_app.simulation.run import Scan, Scanner, scan_brain, write_scan
from slimbrain_app.simulation.settings import CohortSettings, check_settings
from slimbrain_app.simulation.sites import PERSON, draw_site, seed_by_name, shade, shade_coil
from slimbrain_app.simulation.volumes import prepare_scan

# The series already hold what body and scanner added to whole regions: this much more is added.
_NUISANCE = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What all people have in common."""

    folder: Path
    inputs: Inputs
    settings: CohortSettings
    prepared: bool
    anatomy: Anatomy
    weights: csr_array
    checksums: dict[str, str]


def simulate_cohort(
    folder: Path,
    inputs: Inputs,
    settings: CohortSettings,
    prepared: bool = False,
    nprocs: int = 1,
    watch: Callable[[Path], object] = id,
) -> tuple[Path, ...]:
    """Write derivatives of real people's series in invented voxels; return the runs' paths.

    The same inputs and settings give the same bytes, whatever the number of processes, and a
    person is the same whoever else takes part.

    Parameters
    ----------
    prepared : bool
        Write no NIfTI files, but the prepared runs that would come of them.
    nprocs : int
        Processes; each works on one person at a time.
    watch : callable
        Told each run's path when it is written, in the people's order.

    Raises
    ------
    CallRefused
        ``cohort-bad`` with all that is wrong with the inputs; ``usage`` if the folder holds
        anything or a setting is out of its range; ``process-killed``; ``not-writable`` or
        ``disk-full``.
    """
    check_settings(settings)
    check_empty(folder)
    cohort = enrol(inputs, settings.participants)
    anatomy = load_anatomy(settings.voxel_size)
    weights = weigh_parcels(anatomy, cohort.atlas)
    _require_grey(weights, inputs)
    plan = _Plan(
        folder=folder,
        inputs=inputs,
        settings=settings,
        prepared=prepared,
        anatomy=anatomy,
        weights=weights,
        checksums={path.name: sha256_of(path) for path in inputs.signal},
    )
    paths = []
    for path in _map_people(partial(_simulate_person, plan), cohort.volunteers, nprocs):
        paths.append(path)
        watch(path)
    # Last, so that a folder with a description is a whole dataset.
    describe_cohort(folder, cohort, inputs, settings, prepared)
    return tuple(paths)


def _require_grey(weights: csr_array, inputs: Inputs) -> None:
    empty = np.flatnonzero(weights.sum(axis=0) == 0) + 1
    if empty.size:
        raise CallRefused(
            "cohort-bad",
            file=inputs.atlas,
            expected="regions with grey matter of MNI space",
            found=f"none in {len(empty)} of {weights.shape[1]}, the first of them {empty[0]}",
            advice="check the atlas' affine and its space",
        )


def _map_people(
    simulate: Callable[[Volunteer], Path], people: tuple[Volunteer, ...], nprocs: int
) -> Iterator[Path]:
    if nprocs == 1:
        yield from map(simulate, people)
        return
    try:
        with ProcessPoolExecutor(min(nprocs, len(people)), get_context("spawn")) as pool:
            yield from pool.map(simulate, people)
    except BrokenProcessPool as error:
        raise CallRefused(
            "process-killed",
            expected=f"{nprocs} processes to go on to the end",
            found="that one was killed, most likely for want of memory",
            advice="use fewer with --nprocs, and start again in a new folder",
        ) from error


def _simulate_person(plan: _Plan, person: Volunteer) -> Path:
    # One thread, so that sums have the same bits in any process.
    with threadpool_limits(1):
        scan = _scan_person(plan, person)
        name = f"sub-{person.label}"
        stem = plan.folder / name / "func" / f"{name}_task-rest_run-01"
        if plan.prepared:
            return prepare_scan(plan.folder, person.label, scan, _describe_making(plan, person))
        return write_scan(stem, scan)


def _scan_person(plan: _Plan, person: Volunteer) -> Scan:
    settings = plan.settings
    generator = seed_by_name(settings.seed, f"person {person.source}")
    site = draw_site(person.site, settings.seed)
    restlessness = draw_restlessness(generator)
    if person.displacement is not None:
        restlessness = judge_restlessness(person.displacement, person.tr)
    anatomy = shade(shade_coil(plan.anatomy, site), PERSON, generator)
    brain = Sources(weights=plan.weights, series=read_series(plan.inputs, person))
    return scan_brain(
        anatomy,
        amplify(anatomy, brain),
        person.tr,
        restlessness,
        generator,
        Scanner(
            tsnr=settings.tsnr,
            noisiness=site.noisiness,
            nuisance=_NUISANCE,
            spread=site.spread,
            apart=True,
        ),
    )


def _describe_making(plan: _Plan, person: Volunteer) -> dict[str, Any]:
    """Return all that decides what a person's run holds."""
    settings = asdict(plan.settings)
    del settings["participants"]
    return {"simulation": settings, "person": asdict(person), "inputs": plan.checksums}
