"""Cohorts of the recipes' shapes: names of people, sessions and tasks, and the cohorts' own tables.

Their BOLD series are simulated runs under other names: nothing in them is a cohort's.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

Row = dict[str, object]


@dataclass(frozen=True)
class Shape:
    """How a cohort is laid out.

    ``label`` and ``row`` are of the person of a number from 0; ``runs`` of each person.
    """

    label: Callable[[int], str]
    runs: Sequence[str]
    row: Callable[[int], Row]
    ending: str = "csv"


def pick(values: Sequence[object], number: int) -> object:
    return values[number % len(values)]


def write_hcp_row(number: int) -> Row:
    return {
        "Subject": 100307 + number,
        "Release": "S500",
        "Gender": pick("FM", number),
        "Age": pick(["22-25", "26-30", "31-35"], number),
        "Family_ID": f"{51488 + number // 2}_82122",
    }


def write_abide_row(number: int) -> Row:
    return {
        "SITE_ID": pick(["PITT", "NYU", "UM_1"], number // 2),
        "SUB_ID": 50002 + number,
        "DX_GROUP": pick([1, 2], number),
        "AGE_AT_SCAN": 8.5 + 5 * (number % 4) + number / 8,
        "SEX": pick([1, 1, 2], number),
    }


ABIDE = Shape(lambda number: f"00{50002 + number}", ["task-rest_run-1"], write_abide_row)
SHAPES = {
    "hcp-sex": Shape(
        lambda number: str(100307 + number),
        [f"task-{task}_acq-{way}" for task in ("REST1", "REST2") for way in ("LR", "RL")],
        write_hcp_row,
    ),
    "hcp-fingerprint": Shape(
        lambda number: str(100307 + number),
        ["task-REST1_acq-LR", "task-REST2_acq-LR"],
        write_hcp_row,
    ),
    "adni-mci": Shape(
        lambda number: f"ADNI002S{4000 + number}",
        ["ses-M000_task-rest"],
        lambda number: {
            "Image Data ID": f"I{370000 + number}",
            "Subject": f"002_S_{4000 + number}",
            "Group": pick(["CN", "EMCI", "CN", "LMCI", "CN", "MCI", "AD", "SMC"], number),
            "SITE": pick([2, 18, 130], number // 2),
            "Sex": pick("FM", number),
            "Age": 65 + number,
            "Visit": "v06",
            "Modality": "fMRI",
        },
    ),
    "adhd200": Shape(
        lambda number: f"00{10001 + number}",
        ["ses-1_task-rest_run-1"],
        lambda number: {
            "ScanDir ID": 10001 + number,
            "Site": pick([1, 5, 6], number // 2),
            "Gender": pick([1, 0], number),
            "Age": 9.5 + number / 4,
            "DX": pick([0, 1, 0, 3, 0, 2, 0, "withheld"], number),
            "Verbal IQ": -999,
        },
        "tsv",
    ),
    "ppmi": Shape(
        lambda number: str(3001 + number),
        ["ses-BL_task-rest"],
        lambda number: {
            "PATNO": 3001 + number,
            "COHORT": pick([1, 2, 1, 2, 1, 2, 4, 3], number),
            "COHORT_DEFINITION": pick(
                ["Parkinson's Disease", "Healthy Control"] * 3 + ["Prodromal", "SWEDD"], number
            ),
            "ENROLL_AGE": 60.5 + number,
            "SITE": pick([10, 18, 289], number // 2),
        },
    ),
    "abide-age-classes": ABIDE,
    "abide-age": ABIDE,
}


@pytest.fixture(scope="session")
def shapes() -> dict[str, Shape]:
    return SHAPES


@pytest.fixture(scope="session")
def lay_cohort() -> Callable[..., tuple[Path, Path]]:
    """Lay the runs of simulated people out as a cohort's; return derivatives and its own table.

    Where there are more people or runs than simulated ones, these are used again.
    """

    def lay_cohort(source: Path, folder: Path, shape: Shape, people: int) -> tuple[Path, Path]:
        series = sorted(source.glob("sub-*/func/*_desc-preproc_bold.nii.gz"))
        stems = [file.name.partition("_space-")[0] for file in series]
        own = len({file.parent for file in series})
        derivatives = folder / "fmriprep"
        for number in range(people):
            some = [stem for stem in stems if stem.startswith(f"sub-{number % own + 1:02d}_")]
            for place, run in enumerate(shape.runs):
                link_run(source, some[place % len(some)], derivatives, shape.label(number), run)
        os.link(source / "dataset_description.json", derivatives / "dataset_description.json")
        table = folder / f"phenotype.{shape.ending}"
        rows = [shape.row(number) for number in range(people)]
        with table.open("w", newline="") as text:
            delimiter = "," if shape.ending == "csv" else "\t"
            writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        return derivatives, table

    return lay_cohort


def link_run(source: Path, stem: str, derivatives: Path, label: str, run: str) -> None:
    session = [part for part in run.split("_") if part.startswith("ses-")]
    folder = derivatives.joinpath(f"sub-{label}", *session, "func")
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.glob(f"*/func/{stem}_*"):
        os.link(file, folder / file.name.replace(stem, f"sub-{label}_{run}"))
