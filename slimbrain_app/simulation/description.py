"""Sidecars, the table of participants and the README: what the dataset says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimbrain_app import __version__
from slimbrain_app.files import write_json, write_text
from slimbrain_app.simulation.enrolment import Cohort
from slimbrain_app.simulation.people import AGE_COUPLING, AGE_PAIR, SEX_COUPLING, SEX_PAIR, Person
from slimbrain_app.simulation.phenotype import describe_participants, tabulate_participants
from slimbrain_app.simulation.recorded import Inputs
from slimbrain_app.simulation.settings import CohortSettings, SimulationSettings

# Names that fMRIPrep writes and the BIDS validator doesn't know.
_IGNORED = "*_boldref.*\n*_timeseries.*\n"

_README = """\
# Simulated derivatives

Laid out as fMRIPrep writes them, in the space MNI152NLin2009cAsym. No person was scanned. Ages,
sexes and every dependence on them are made up: nothing here is a finding.

Made by SlimBrain {version}; the same versions of it and of its libraries give the same bytes with:

{settings}

What is in the signal:

- 285 regions (Seitzman et al. 2020, as nilearn ships them) of 13 bilateral networks, in grey
  matter. Each follows random events, convolved with Glover's haemodynamic response, that it shares
  in part with its network. Places and strengths differ a little between people.
- Networks are coupled. {age_first} and {age_second} correlate by {youngest} at 20 years,
  in a straight line up to {oldest} at 80; {sex_first} and {sex_second} by {women} in women,
  {men} in men.
- Drift, breath, heartbeat (aliased), a slow oscillation of the whole brain, smooth autocorrelated
  noise, thermal noise.
- Head motion: realignment has left some of it at the edges, and movement costs signal. One volume
  per 100 s jumps.

Tissue comes from the MNI152 templates of release 2009a that nilearn ships: right to within a few
millimetres, no official template of the space in the file names. Copyright (C) 1993-2004 Louis
Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill University.
"""

_COHORT_README = """\
# Real series of regions in simulated voxels

The series of each region of a parcellation are those of real people, and so are the phenotypes in
participants.tsv. Everything finer than a region is made up: nothing here is a finding about voxels,
and the terms of the source, which also is what to cite, hold for these data too.

Made by SlimBrain {version}; the same versions of it and of its libraries give the same bytes with:

{settings}

What is in the signal:

- Each region's series, in grey matter, blended with its neighbours' over 6 mm.
- Smooth autocorrelated noise and thermal noise, drift, breath, heartbeat (aliased), a slow
  oscillation of the whole brain, what realignment leaves of head motion: all scaled together so
  that the median grey voxel has the temporal signal-to-noise above, give or take what a site adds.
  Smooth and thermal noise average out over regions: the recorded means hold their own.
- Traits of each site, drawn by its name: shading, strength and smoothness of the noise.

The recorded series already hold their own scanner's noise, and have been through their own
pipeline. Tissue comes from the MNI152 templates of release 2009a that nilearn ships. Copyright (C)
1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal Neurological Institute, McGill
University.
"""


def describe_dataset(folder: Path, settings: SimulationSettings, people: Sequence[Person]) -> None:
    """Write what stands at the top of the dataset, its description last."""
    rows = [f"sub-{person.label}\t{person.age}\t{person.sex}\n" for person in people]
    write_text(folder / "participants.tsv", "participant_id\tage\tsex\n" + "".join(rows))
    write_json(folder / "participants.json", _describe_participants())
    write_text(folder / "README.md", _write_readme(settings))
    write_text(folder / ".bidsignore", _IGNORED)
    origin = _describe_origin(
        "Simulated derivatives, laid out as fMRIPrep writes them",
        "Simulated data; no person was scanned.",
        "SlimBrain simulator",
    )
    write_json(folder / "dataset_description.json", {**origin, "License": "CC0"})


def describe_cohort(
    folder: Path, cohort: Cohort, inputs: Inputs, settings: CohortSettings, prepared: bool
) -> None:
    """Write what stands at the top of a dataset made of real people's series."""
    labels = [person.label for person in cohort.volunteers]
    table = tabulate_participants(cohort.table, labels, cohort.key)
    write_text(folder / "participants.tsv", table.to_csv(sep="\t", na_rep="n/a", index=False))
    write_json(folder / "participants.json", describe_participants(table))
    files = [path.name for path in (*inputs.signal, inputs.phenotype)]
    readme = _COHORT_README.format(
        version=__version__,
        settings=_list_settings({**asdict(settings), "inputs": ", ".join(files)}),
    )
    write_text(folder / "README.md", readme)
    write_text(folder / ".bidsignore", "*_prepared\n" if prepared else _IGNORED)
    origin = _describe_origin(
        "Real series of regions in invented voxels",
        "Real people's series by region, put back into simulated voxels. "
        "Cite the source of the series and keep to its terms.",
        "SlimBrain" if prepared else "SlimBrain simulator",
    )
    write_json(folder / "dataset_description.json", origin)


def describe_series(tr: float) -> dict[str, Any]:
    """Return the sidecar of a BOLD series; TR in s."""
    return {
        "TaskName": "rest",
        "RepetitionTime": tr,
        "StartTime": 0.0,
        "SliceTimingCorrected": True,
        "SkullStripped": True,
    }


def _describe_origin(name: str, acknowledgement: str, maker: str) -> dict[str, Any]:
    return {
        "Name": name,
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "HowToAcknowledge": acknowledgement,
        "GeneratedBy": [{"Name": maker, "Version": __version__}],
    }


def _describe_participants() -> dict[str, Any]:
    return {
        "age": {"Description": "Age, made up", "Units": "years"},
        "sex": {"Description": "Sex, made up", "Levels": {"F": "female", "M": "male"}},
    }


def _write_readme(settings: SimulationSettings) -> str:
    return _README.format(
        version=__version__,
        settings=_list_settings(asdict(settings)),
        age_first=AGE_PAIR[0],
        age_second=AGE_PAIR[1],
        youngest=AGE_COUPLING[0],
        oldest=AGE_COUPLING[1],
        sex_first=SEX_PAIR[0],
        sex_second=SEX_PAIR[1],
        women=SEX_COUPLING["F"],
        men=SEX_COUPLING["M"],
    )


def _list_settings(settings: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in settings.items())
