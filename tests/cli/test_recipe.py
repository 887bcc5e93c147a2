"""``slimbrain-tools recipe`` as it is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.errors import Exit
from slimbrain_app.recipes.recipe import list_recipes

TOOLS = Path(sys.executable).parent / "slimbrain-tools"


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS, "recipe", *map(str, words)],
        env={**os.environ, "COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_all_are_listed_by_name_and_one_is_printed_for_a_shell():
    listed = call()
    assert listed.returncode == 0
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == [recipe.name for recipe in list_recipes()]
    printed = call("ppmi")
    assert printed.returncode == 0 and printed.stderr == ""
    assert printed.stdout.startswith("#!/bin/sh\n# ppmi: ")


@pytest.fixture
def people(simulated, tmp_path) -> Path:
    """A table of people of the two who are simulated, each twice under another label."""
    derivatives = tmp_path / "fmriprep"
    for number in range(4):
        own, label = f"sub-{number % 2 + 1:02d}", f"sub-{3001 + number}"
        for file in simulated.glob(f"{own}/func/*"):
            link = derivatives / label / "func" / file.name.replace(own, label)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)
    (derivatives / "dataset_description.json").write_text('{"DatasetType": "derivative"}')
    table = tmp_path / "status.csv"
    table.write_text("PATNO,COHORT\n3001,1\n3002,2\n3003,1\n3004,2\n")
    return table


def test_a_cohort_that_is_there_ends_with_0_and_leaves_its_table(people):
    table = people.with_name("ppmi.tsv")
    words = ("ppmi", "--check", people.with_name("fmriprep"), "--phenotype", people)
    done = call(*words, "--table", table)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 people by COHORT: PD 2, control 2" in done.stdout
    assert done.stderr.startswith("Not certain: Which groups the paper told apart is not said")
    header, first, *_ = table.read_text().splitlines()
    assert header.split("\t") == ["participant_id", "diagnosis", "site", "age", "sex"]
    assert first.split("\t") == ["sub-3001", "PD", "n/a", "n/a", "n/a"]


def test_a_cohort_without_the_outcome_ends_with_one_error_and_no_table(people):
    people.write_text("PATNO,COHORT\n3001,1\n3002,1\n")
    table = people.with_name("ppmi.tsv")
    words = ("ppmi", "--check", people.with_name("fmriprep"), "--phenotype", people)
    done = call(*words, "--table", table)
    assert done.returncode == Exit.DATA
    assert "4 with runs that can be used" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("slimbrain-tools: [outcome-constant]")
    assert not table.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("unknown",),
        ("--check", "fmriprep"),
        ("ppmi", "--table", "new.tsv"),
        ("ppmi", "--phenotype", "status.csv"),
        ("ppmi", "--check", "fmriprep", "--table", "new.csv"),
        ("ppmi", "--check", "fmriprep", "--table", "fmriprep/participants.tsv"),
        ("ppmi", "--check", "fmriprep", "--phenotype", "status.tsv", "--table", "./status.tsv"),
    ],
)
def test_what_can_not_be_meant_is_refused_before_anything_is_read(words):
    done = call(*words)
    assert done.returncode == Exit.USAGE
    assert "[usage]" in done.stderr


def test_derivatives_that_are_not_there_are_refused_as_by_a_call(tmp_path):
    done = call("ppmi", "--check", tmp_path / "nowhere")
    assert done.returncode == Exit.NO_INPUT
    assert "[no-input]" in done.stderr
