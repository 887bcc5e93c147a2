"""From derivatives to an evaluation, a package with heads and predictions, by real calls."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimbrain_app.errors import Exit
from slimbrain_app.model.packages import load_heads, load_package
from slimbrain_app.simulation import SimulationSettings, simulate_dataset

SLIMBRAIN = str(Path(sys.executable).with_name("slimbrain"))
SETTINGS = """
[rank]
windows = 2
[judge]
folds = 2
repeats = 1
permutations = 1
"""
PEOPLE = 8


def call(*words: object) -> subprocess.CompletedProcess[str]:
    command = [SLIMBRAIN, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, sep="\t", dtype={"participant_id": str})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("simulated") / "fmriprep"
    settings = SimulationSettings(participants=PEOPLE, volumes=60, voxel_size=6.0)
    simulate_dataset(folder, settings)
    table = read(folder / "participants.tsv")
    table["sex"] = ["F", "M"] * (PEOPLE // 2)
    table["site"] = ["a", "b", "c", "a"] * (PEOPLE // 4)
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("settings") / "quick.toml"
    file.write_text(SETTINGS)
    return file


@pytest.fixture(scope="module")
def evaluated(dataset, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "slimbrain"
    words = ("group", "--action", "evaluate", "--outcome", "sex", "age", "--config", config)
    return output, call(dataset, output, *words)


def test_the_model_stands_beside_its_baselines_in_every_fold(evaluated):
    output, done = evaluated
    assert done.returncode == Exit.DONE, done.stderr
    metrics = read(output / "desc-slimbrain_metrics.tsv")
    told = metrics[metrics["against"].isna()]
    named = {"model", "connectivity, correlation", "parcels", "covariates"}
    for outcome in ("sex", "age"):
        for scheme in ("person", "site"):
            own = told[(told["outcome"] == outcome) & (told["scheme"] == scheme)]
            assert set(own["features"]) == named
            assert (own["people"] == PEOPLE).all()
    assert {"identity within a run"} <= set(told["outcome"])
    assert "connectivity, correlation" in done.stdout
    scores = read(output / "desc-slimbrain_scores.tsv")
    assert scores["participant_id"].nunique() == PEOPLE


def test_page_and_tables_stand_at_the_root_and_name_no_folder_of_this_machine(evaluated):
    output, _ = evaluated
    for name in ("metrics", "scores", "splits", "calibration"):
        table = read(output / f"desc-slimbrain_{name}.tsv")
        described = json.loads((output / f"desc-slimbrain_{name}.json").read_text())
        assert set(described) == set(table.columns)
    page = (output / "evaluation.html").read_text()
    assert str(output.parent) not in page


@pytest.mark.slow
def test_a_second_call_embeds_nothing_and_says_the_same(dataset, config, evaluated):
    output, _ = evaluated
    tables = sorted(output.glob("desc-slimbrain_*.tsv"))
    before = {file.name: file.read_bytes() for file in tables}
    kept = {file: file.stat().st_mtime_ns for file in output.glob("features/**/*.npz")}
    assert len(kept) == 2 * PEOPLE
    words = ("group", "--action", "evaluate", "--outcome", "sex", "age", "--config", config)
    assert call(dataset, output, *words).returncode == Exit.DONE
    assert {file: file.stat().st_mtime_ns for file in output.glob("features/**/*.npz")} == kept
    assert {file.name: file.read_bytes() for file in tables} == before


@pytest.mark.slow
def test_only_the_test_part_of_a_split_is_judged_and_the_page_says_so(dataset, evaluated, tmp_path):
    output = tmp_path / "slimbrain"
    shutil.copytree(evaluated[0], output)
    parts = ["train"] * 3 + ["validation"] + ["test"] * 3
    rows = [f"sub-{row:02d}\t{part}" for row, part in enumerate(parts, start=1)]
    split = tmp_path / "split.tsv"
    split.write_text("\n".join(["participant_id\tpart", *rows, "sub-99\ttrain"]) + "\n")
    config = tmp_path / "split.toml"
    config.write_text(SETTINGS + f'split = "{split}"\n')
    words = ("group", "--action", "evaluate", "--outcome", "sex", "age", "--config", config)
    done = call(dataset, output, *words)
    assert done.returncode == Exit.DONE, done.stderr
    assert "1 of 8 people with runs are not in split.tsv" in done.stderr
    assert "1 people in split.tsv have no run" in done.stderr
    scores, splits = (read(output / f"desc-slimbrain_{name}.tsv") for name in ("scores", "splits"))
    assert set(scores["participant_id"]) == {"sub-05", "sub-06", "sub-07"}
    assert set(splits["scheme"]) == {"file"}
    assert splits.groupby("outcome")["fold"].count().tolist() == [3, 3]
    page = (output / "evaluation.html").read_text()
    assert "as the file of splits says (3 people)" in page
    assert "laid down in a table" in page and str(tmp_path) not in page
    split.write_text("\n".join(["participant_id\tpart", *rows, "sub-01\ttest"]) + "\n")
    refused = call(dataset, output, *words[:2], "finetune", *words[3:], "--dry-run")
    assert refused.returncode == Exit.DATA
    assert "[leak]" in refused.stderr and "sub-01 in test and train" in refused.stderr


@pytest.fixture(scope="module")
def tuned(dataset, config, evaluated) -> Path:
    output, _ = evaluated
    words = ("group", "--action", "finetune", "--outcome", "sex", "age", "--config", config)
    known = [f"{number:02d}" for number in range(1, PEOPLE)]
    done = call(dataset, output, *words, "--package-name", "mine", "--participant-label", *known)
    assert done.returncode == Exit.DONE, done.stderr
    return output


@pytest.mark.slow
def test_heads_are_those_that_predict_people_left_out_of_the_fit(dataset, tuned):
    package = load_package(tuned / "models/mine")
    heads = load_heads(package)
    assert [head.outcome for head in heads.heads] == ["sex", "age"]
    assert all(head.people == PEOPLE - 1 for head in heads.heads)
    words = ("participant", "--model", "mine", "--windows", 2, "--participant-label", "01", "08")
    done = call(dataset, tuned, *words)
    assert done.returncode == Exit.DONE, done.stderr
    for label, seen in (("01", True), ("08", False)):
        file = tuned / f"sub-{label}/sub-{label}_desc-slimbrain_predictions.tsv"
        table = read(file).set_index("outcome")
        assert table.loc["sex", "value"].sum() == pytest.approx(1)
        assert ("seen-in-training" in str(table.loc["age", "flag"])) == seen
        (mean,) = tuned.glob(f"sub-{label}/func/*stat-mean*embeddings.tsv")
        embedding = read(mean).to_numpy(float)[0]
        (expected,) = heads.weights["age"] @ embedding + heads.biases["age"]
        assert table.loc["age", "value"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_embeddings_of_the_group_are_those_of_the_participant_level(dataset, evaluated, tmp_path):
    words = ("participant", "--windows", 2, "--participant-label", "08")
    done = call(dataset, tmp_path / "slimbrain", *words)
    assert done.returncode == Exit.DONE, done.stderr
    (mean,) = tmp_path.glob("slimbrain/sub-08/func/*stat-mean*embeddings.tsv")
    (kept,) = evaluated[0].glob("features/*/sub-08_*_embeddings-*.npz")
    with np.load(kept) as archive:
        assert np.array_equal(archive["mean"], read(mean).to_numpy(np.float32)[0])


@pytest.mark.slow
def test_people_whom_heads_were_fitted_to_are_not_judged_unless_asked_for(
    dataset, config, tuned, tmp_path
):
    words = ("group", "--action", "evaluate", "--outcome", "sex", "--model", "mine")
    refused = call(dataset, tuned, *words, "--config", config)
    assert refused.returncode == Exit.DATA
    assert "[leak]" in refused.stderr and "sub-01" in refused.stderr
    wish = tmp_path / "keep.toml"
    wish.write_text(SETTINGS + '[predict]\nseen = "keep"\n')
    kept = call(dataset, tuned, *words, "--config", wish)
    assert kept.returncode == Exit.DONE, kept.stderr
    assert "Seen in training" in (tuned / "evaluation.html").read_text()
    assert "says nothing of others" in kept.stderr


def test_a_person_under_two_labels_is_refused_by_both_names(dataset, config, tmp_path):
    twins = tmp_path / "fmriprep"
    shutil.copytree(dataset, twins)
    shutil.rmtree(twins / "sub-02")
    shutil.copytree(dataset / "sub-01", twins / "sub-02")
    for file in sorted((twins / "sub-02").rglob("*sub-01*")):
        file.rename(file.with_name(file.name.replace("sub-01", "sub-02")))
    words = ("group", "--action", "evaluate", "--outcome", "sex", "--config", config)
    labels = ("--participant-label", "01", "02", "03")
    done = call(twins, tmp_path / "out", *words, *labels)
    assert done.returncode == Exit.DATA
    assert "[leak]" in done.stderr
    assert "sub-01" in done.stderr and "sub-02" in done.stderr
    assert not list((tmp_path / "out").glob("desc-slimbrain_*"))


@pytest.mark.parametrize(
    ("words", "reason", "told"),
    [
        (["--outcome", "sexx"], "no-outcome", "sex"),
        ([], "usage", "--outcome"),
        (["--outcome", "site", "--participant-label", "01", "04"], "outcome-constant", "site"),
    ],
)
def test_what_can_not_be_predicted_is_refused_in_one_error(
    dataset, config, evaluated, words, reason, told
):
    output, _ = evaluated
    tables = {file: file.read_bytes() for file in output.glob("desc-slimbrain_*")}
    done = call(dataset, output, "group", "--action", "evaluate", *words, "--config", config)
    assert done.returncode in (Exit.DATA, Exit.USAGE)
    assert f"[{reason}]" in done.stderr and told in done.stderr
    assert "Traceback" not in done.stderr
    assert {file: file.read_bytes() for file in output.glob("desc-slimbrain_*")} == tables


@pytest.mark.parametrize("action", ["evaluate", "finetune"])
def test_a_dry_run_says_what_it_would_do_and_writes_nothing(dataset, config, tmp_path, action):
    words = ("group", "--action", action, "--outcome", "age", "--config", config, "--dry-run")
    done = call(dataset, tmp_path / "out", *words)
    assert done.returncode == Exit.DONE, done.stderr
    assert done.stdout.count("would prepare") == PEOPLE
    assert f"{PEOPLE} people" in done.stderr
    assert not (tmp_path / "out").exists()
