"""What a recipe prints, typed: from a cohort of its shape to the rows that it compares."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from slimbrain_app.cli.recipe import METRICS, write_script
from slimbrain_app.recipes.recipe import list_recipes, load_recipe
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "400",
}
# Few windows and folds; and no more of the script than a test has time for.
QUICK = """
[rank]
windows = 2
[judge]
folds = 2
repeats = 1
permutations = 0
[compute]
nprocs = 1
"""
SHELL = """set -e
fmriprep() { echo "fmriprep $*" >> calls; }
slimbrain() {
    echo "slimbrain $*" >> calls
    case "$*" in
        *finetune*) [ -n "$TUNE" ] || return 0; echo "passes = 1" >> "$NAME-tune.toml";;
        *evaluate*) cp quick.toml all.toml; cat "$NAME.toml" >> all.toml; mv all.toml "$NAME.toml";;
        *) [ -n "$TUNE" ] || return 0; set -- "$@" --windows 2;;
    esac
    command slimbrain "$@"
}
"""


def simulate(folder: Path, people: int, runs: int) -> Path:
    settings = SimulationSettings(participants=people, runs=runs, volumes=40, voxel_size=6.0)
    simulate_dataset(folder, settings)
    return folder


def type_script(name: str, folder: Path, derivatives: Path, table: Path, tune: bool) -> str:
    """Run the commands of a recipe in a folder, with its first lines filled in."""
    values = {"RAW": folder / "raw", "DERIVATIVES": derivatives, "OUT": folder / "out"}
    values |= {"PHENOTYPE": table, "MODEL": "tiny"}
    script = write_script(load_recipe(name))
    for variable, value in values.items():
        script, changed = re.subn(rf"^{variable}=\S+", f"{variable}='{value}'", script, flags=re.M)
        assert changed == 1
    (folder / "quick.toml").write_text(QUICK)
    done = subprocess.run(
        ["sh", "-c", SHELL + script],
        cwd=folder,
        env={**ENVIRONMENT, "NAME": name, "TUNE": "yes" if tune else ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def find_compared(name: str, folder: Path) -> pd.DataFrame:
    """Return the rows that a recipe says to compare; each of them once."""
    table = pd.read_csv(folder / "out" / METRICS, sep="\t")
    own = table[(table["features"] == "model") & table["against"].isna()]
    keys = ["outcome", "scheme", "metric"]
    wanted = [tuple(getattr(row, key) for key in keys) for row in load_recipe(name).ours.rows]
    found = own[own[keys].apply(tuple, axis=1).isin(wanted)]
    assert sorted(found[keys].itertuples(index=False, name=None)) == sorted(wanted)
    return found


@pytest.mark.slow
def test_what_a_recipe_prints_ends_at_the_rows_that_it_compares(lay_cohort, shapes, tmp_path):
    name = "adhd200"
    source = simulate(tmp_path / "simulated", people=6, runs=1)
    derivatives, table = lay_cohort(source, tmp_path, shapes[name], 6)
    said = type_script(name, tmp_path, derivatives, table, tune=False)
    assert "6 of 6 people by DX: ADHD 3, control 3" in said
    found = find_compared(name, tmp_path)
    assert found["people"].tolist() == [6, 6]
    assert sorted(found["scheme"]) == ["person", "site"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["fmriprep", *["slimbrain"] * 3]
    assert calls[0].endswith("participant --output-spaces MNI152NLin2009cAsym:res-2")


@pytest.fixture(scope="module")
def simulated_people(tmp_path_factory) -> Path:
    return simulate(tmp_path_factory.mktemp("simulated") / "fmriprep", people=20, runs=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["abide-age-classes", "adni-mci", "hcp-fingerprint", "hcp-sex", "ppmi"]
)
def test_every_recipe_ends_at_the_rows_that_it_compares(
    name, simulated_people, lay_cohort, shapes, tmp_path
):
    derivatives, table = lay_cohort(simulated_people, tmp_path, shapes[name], 12)
    for file in derivatives.glob("sub-*/func/*_acq-RL_*"):
        file.unlink()  # They are the same files as LR, under another name.
    type_script(name, tmp_path, derivatives, table, tune=False)
    find_compared(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["abide-age", "adhd200"])
def test_a_recipe_as_a_whole_leaves_a_package_that_tells_its_test_part(
    name, simulated_people, lay_cohort, shapes, tmp_path
):
    derivatives, table = lay_cohort(simulated_people, tmp_path, shapes[name], 20)
    said = type_script(name, tmp_path, derivatives, table, tune=True)
    find_compared(name, tmp_path)
    assert "Test part" in said
    assert "of the test part" in (tmp_path / "out/models" / name / "card.md").read_text()
    split = pd.read_csv(tmp_path / f"out/logs/{name}_split.tsv", sep="\t")
    assert 0.1 < (split["part"] == "test").mean() < 0.3
    assert len(list((tmp_path / "out").glob("sub-*/**/*stat-mean*embeddings.tsv"))) == 20


def test_every_script_is_understood_by_a_shell():
    for recipe in list_recipes():
        script = write_script(recipe)
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
        assert max(map(len, script.splitlines())) <= 100
        for figure in recipe.paper.figures:
            assert f"{figure.model}, {figure.fit}: {figure.metric} {figure}\n" in script
