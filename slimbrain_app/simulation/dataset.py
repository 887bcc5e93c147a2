"""A whole dataset: who is in it, and from which seed each is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from slimbrain_app.files import check_empty
from slimbrain_app.simulation.anatomy import Anatomy, load_anatomy
from slimbrain_app.simulation.bold import Sources
from slimbrain_app.simulation.description import describe_dataset
from slimbrain_app.simulation.networks import Regions, load_regions, weigh_regions
from slimbrain_app.simulation.people import Person, draw_person
from slimbrain_app.simulation.run import scan_brain, write_scan
from slimbrain_app.simulation.settings import SimulationSettings, check_settings
from slimbrain_app.simulation.sites import PERSON, shade
from slimbrain_app.simulation.timecourses import draw_time_courses


def simulate_dataset(folder: Path, settings: SimulationSettings) -> tuple[Path, ...]:
    """Write derivatives as fMRIPrep would, of people who don't exist; return the BOLD files.

    The same settings give the same bytes, and a participant is the same whatever their number.

    Raises
    ------
    CallRefused
        ``usage`` if the folder holds anything or a setting is out of its range; ``not-writable``
        or ``disk-full``.
    """
    check_settings(settings)
    check_empty(folder)
    template, regions = load_anatomy(settings.voxel_size), load_regions()
    people: list[Person] = []
    series: list[Path] = []
    for number in range(1, settings.participants + 1):
        generator = _generator(settings.seed, number)
        person = draw_person(number, regions, generator)
        people.append(person)
        anatomy = shade(template, PERSON, generator)
        series += _simulate_runs(folder, settings, anatomy, regions, person, number)
    # Last, so that a folder with a description is a whole dataset.
    describe_dataset(folder, settings, people)
    return tuple(series)


def _simulate_runs(
    folder: Path,
    settings: SimulationSettings,
    anatomy: Anatomy,
    regions: Regions,
    person: Person,
    number: int,
) -> Iterator[Path]:
    weights = weigh_regions(anatomy, person.coordinates, person.gains)
    name = f"sub-{person.label}"
    for run in range(1, settings.runs + 1):
        generator = _generator(settings.seed, number, run)
        brain = Sources(
            weights=weights,
            series=draw_time_courses(
                regions, person.mixing, settings.volumes, settings.tr, generator
            ),
        )
        stem = folder / name / "func" / f"{name}_task-rest_run-{run:02d}"
        scan = scan_brain(anatomy, brain, settings.tr, person.restlessness, generator)
        yield write_scan(stem, scan)


def _generator(seed: int, number: int, run: int = 0) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(number, run)))
