"""Predictions of a package with heads, as a user meets them: real calls, real files."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.errors import Exit
from slimbrain_app.files import sha256_of
from slimbrain_app.model.packages import (
    SEEN,
    load_encoder,
    load_heads,
    load_package,
    save_package,
)
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
PERSON = "sub-01/sub-01_desc-slimbrain_predictions"
RUNS = ("sub-01_task-rest_run-01", "sub-01_task-rest_run-02")
SPACE = "space-MNI152NLin2009cAsym"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """Derivatives of one person with two coarse runs."""
    folder = tmp_path_factory.mktemp("simulated") / "fmriprep"
    simulate_dataset(folder, SimulationSettings(participants=1, runs=2, volumes=40, voxel_size=6.0))
    return folder


@pytest.fixture(scope="module")
def fitted(dataset: Path, headed: Path, tmp_path_factory) -> Path:
    """The package with heads, its weights fitted to the second run."""
    (bold,) = dataset.rglob("*run-02*_bold.nii.gz")
    package = load_package(headed)
    seen = json.dumps({"sha256": [sha256_of(bold)]})
    return save_package(
        tmp_path_factory.mktemp("packages") / "fitted",
        package.config,
        load_encoder(package),
        heads=load_heads(package),
        card="# fitted",
        records={SEEN: seen},
    ).folder


def call(dataset: Path, output: Path, *options: object) -> subprocess.CompletedProcess[str]:
    words = (dataset, output, "participant", "--windows", 1, *options)
    command = [SLIMBRAIN, *map(str, words)]
    environment = {**os.environ, "COLUMNS": "200"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == Exit.DONE, result.stderr
    return result


@pytest.fixture(scope="module")
def output(dataset: Path, fitted: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("output") / "out"
    call(dataset, folder, "--model", fitted, "--nprocs", 1)
    return folder


def name_table(run: str, suffix: str) -> str:
    return f"sub-01/func/{run}_{SPACE}_{suffix}.tsv"


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def read_embedding(output: Path, run: str) -> list[float]:
    (row,) = read_rows(output / name_table(run, "stat-mean_desc-slimbrain_embeddings"))
    return [float(value) for value in row.values()]


def answer(package: Path, outcome: str, embedding: list[float]) -> list[float]:
    heads = load_heads(load_package(package))
    return [
        sum(float(w) * e for w, e in zip(row, embedding, strict=True)) + float(b)
        for row, b in zip(heads.weights[outcome], heads.biases[outcome], strict=True)
    ]


def predictions(output: Path) -> dict[str, bytes]:
    files = output.rglob("*_predictions.tsv")
    return {file.relative_to(output).as_posix(): file.read_bytes() for file in files}


def test_runs_and_the_person_have_predictions_each_with_a_sidecar(output):
    tables = [*(name_table(run, "desc-slimbrain_predictions") for run in RUNS), f"{PERSON}.tsv"]
    assert sorted(predictions(output)) == sorted(tables)
    for table in tables:
        rows = read_rows(output / table)
        assert [row["outcome"] for row in rows] == ["age", "sex", "sex", *["site"] * 3]
        sidecar = json.loads((output / table).with_suffix(".json").read_text())
        assert all(sidecar[column]["Description"] for column in rows[0])


def test_a_run_is_predicted_from_its_embedding(output, fitted):
    for run in RUNS:
        rows = read_rows(output / name_table(run, "desc-slimbrain_predictions"))
        (expected,) = answer(fitted, "age", read_embedding(output, run))
        assert float(rows[0]["value"]) == pytest.approx(expected, rel=1e-7)


def test_the_person_is_predicted_from_the_mean_embedding_over_runs(output, fitted):
    first, second = (read_embedding(output, run) for run in RUNS)
    mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
    rows = read_rows(output / f"{PERSON}.tsv")
    (expected,) = answer(fitted, "age", mean)
    assert float(rows[0]["value"]) == pytest.approx(expected, rel=1e-7)
    assert float(rows[0]["upper"]) == pytest.approx(expected + 9.5, rel=1e-7)
    odds = answer(fitted, "site", mean)
    second_to_first = float(rows[4]["value"]) / float(rows[3]["value"])
    assert second_to_first == pytest.approx(2.718281828459045 ** (odds[1] - odds[0]), rel=1e-6)
    sidecar = json.loads((output / f"{PERSON}.json").read_text())
    assert sidecar["Runs"] == list(RUNS)
    assert all((output / uri.removeprefix("bids::")).is_file() for uri in sidecar["Sources"])


def test_who_was_seen_in_training_is_said_in_table_and_page(output):
    tables = [*(name_table(run, "desc-slimbrain_predictions") for run in RUNS), f"{PERSON}.tsv"]
    flags = [{row["flag"] for row in read_rows(output / table)} for table in tables]
    assert flags == [{"n/a"}, {"seen-in-training"}, {"seen-in-training"}]
    page = html.unescape((output / "sub-01.html").read_text())
    assert "<strong>Seen in training.</strong>" in page
    assert "<strong>Out of distribution.</strong>" not in page


def test_page_and_methods_tell_what_was_predicted(output):
    page = re.sub(r"<[^>]*>", " ", html.unescape((output / "sub-01.html").read_text()))
    (row,) = [row for row in read_rows(output / f"{PERSON}.tsv") if row["outcome"] == "age"]
    told = re.findall(r"age \(years\)\s+(-?[\d.]+)\s", page)
    assert f"{float(row['value']):#.4g}" in told
    assert "No diagnosis" in page
    assert "age (fitted to 30 people)" in (output / "logs/CITATION.md").read_text()


def test_a_lost_prediction_of_the_person_is_made_again_without_redoing_runs(
    dataset, output, fitted, tmp_path
):
    copy = tmp_path / "out"
    shutil.copytree(output, copy, copy_function=shutil.copy2)
    (copy / f"{PERSON}.json").unlink()
    (copy / f"{PERSON}.tsv").unlink()
    said = call(dataset, copy, "--model", fitted, "--nprocs", 1).stdout
    assert "up to date" in said and " done " not in said and "Traceback" not in said
    assert predictions(copy) == predictions(output)
    assert f"{RUNS[1]}, from its embedding" in (copy / "sub-01.html").read_text()


@pytest.mark.slow
def test_predictions_are_the_same_to_the_bit_by_several_processes(
    dataset, output, fitted, tmp_path
):
    options = ("--model", fitted, "--nprocs", 2, "--omp-nthreads", 2)
    call(dataset, tmp_path / "out", *options)
    assert predictions(tmp_path / "out") == predictions(output)


def test_embeddings_of_one_package_are_never_read_by_heads_of_another(
    dataset, output, headed, tmp_path
):
    copy = tmp_path / "out"
    shutil.copytree(output, copy, copy_function=shutil.copy2)
    options = ("--model", headed, "--nprocs", 1, "--overwrite", "never", "--run-id", "01")
    call(dataset, copy, *options)
    assert f"{PERSON}.tsv" not in predictions(copy)
    page = (copy / "sub-01.html").read_text()
    assert "<dd>none: another package was used</dd>" in page
    assert "Nothing was predicted" in page
    assert "Nothing was done" in call(dataset, copy, *options).stderr


def collect(output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Make tables over the cohort, without a file of the derivatives."""
    empty = output.parent / "derivatives"
    empty.mkdir(exist_ok=True)
    words = [SLIMBRAIN, empty, output, "group", *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def list_tables(output: Path) -> list[Path]:
    names = ("desc-slimbrain_runs", "desc-slimbrain_embeddings", "phenotype/slimbrain")
    return [output / f"{name}.tsv" for name in names]


@pytest.fixture(scope="module")
def collected(output: Path, tmp_path_factory) -> Path:
    copy = tmp_path_factory.mktemp("collected") / "out"
    shutil.copytree(output, copy, copy_function=shutil.copy2)
    result = collect(copy)
    assert result.returncode == Exit.DONE, result.stderr
    return copy


def test_dry_run_of_tables_names_them_and_writes_nothing(output):
    before = sorted(output.rglob("*"))
    result = collect(output, "--dry-run")
    said = [line.split(": ")[0] for line in result.stdout.splitlines()]
    assert said == [f"would write {table}" for table in list_tables(output)]
    assert (result.returncode, sorted(output.rglob("*"))) == (Exit.DONE, before)


def test_tables_without_a_damaged_run_are_made_and_the_exit_says_so(output, tmp_path):
    copy = tmp_path / "out"
    shutil.copytree(output, copy, copy_function=shutil.copy2)
    (copy / name_table(RUNS[1], "stat-mean_desc-slimbrain_embeddings")).write_text("e0000\n")
    result = collect(copy)
    assert result.returncode == Exit.DATA
    assert f"{RUNS[1]} [output-bad]" in result.stderr and "Traceback" not in result.stderr
    assert [row["run"] for row in read_rows(list_tables(copy)[1])] == ["01"]


def test_tables_over_the_cohort_repeat_what_stands_beside_each_run_and_person(collected):
    runs, embeddings, people = (read_rows(file) for file in list_tables(collected))
    assert [(row["run"], row["state"]) for row in runs] == [("01", "done"), ("02", "done")]
    assert [row["selected_windows"] for row in runs] == ["1", "1"]
    assert [row["warnings"] for row in runs] == ["n/a", "seen-in-training"]
    assert all(0 < float(row["mean_framewise_displacement"]) < 1 for row in runs)
    for row, run in zip(embeddings, RUNS, strict=True):
        (own,) = read_rows(collected / name_table(run, "stat-mean_desc-slimbrain_embeddings"))
        assert {name: row[name] for name in own} == own
    (person,) = people
    told = {f"{r['outcome']}_{r['level']}": r for r in read_rows(collected / f"{PERSON}.tsv")}
    assert person["age"] == told["age_n/a"]["value"]
    assert person["age_upper"] == told["age_n/a"]["upper"]
    assert all(person[name] == told[name]["value"] for name in ("sex_F", "sex_M", "site_c"))
    assert (person["participant_id"], person["flag"]) == ("sub-01", "seen-in-training")


def test_output_with_predictions_and_tables_is_a_valid_bids_derivative(collected):
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("no bids-validator-deno in this environment")
    config = Path(__file__).parents[2] / "bids_validator_config.json"
    command = [validator, "--json", "--config", str(config), str(collected)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    issues = json.loads(result.stdout)["issues"]["issues"]
    assert [issue for issue in issues if issue["severity"] != "ignore"] == []
