"""With the suite itself: its smoke test, its loader and its reader, and its command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from slimbrain_app import CallRefused
from slimbrain_app.brainmarks.cohort import export_cohort
from slimbrain_app.brainmarks.rows import ATLAS
from slimbrain_app.brainmarks.space import TEMPLATE, VOXELS, suite_grid

from .conftest import write_image

pytestmark = pytest.mark.brainmarks

LEFT_OUT = ("sub-11", "sub-12")


@pytest.fixture
def exported(templates, cohort, brain, tmp_path, monkeypatch) -> tuple[Path, list[str]]:
    """A dataset of ten people, two having no outcome, and what was said of it."""
    labels = np.zeros(brain.shape, np.int16)
    labels[brain] = np.arange(VOXELS) * 400 // VOXELS + 1
    write_image(templates / f"tpl-{TEMPLATE}/tpl-{TEMPLATE}_{ATLAS}", labels, suite_grid().affine)
    table = pd.read_csv(cohort / "participants.tsv", sep="\t")
    table.loc[table["participant_id"].isin(LEFT_OUT), "sex"] = None
    table.to_csv(cohort / "participants.tsv", sep="\t", index=False, na_rep="n/a")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said: list[str] = []
    written = export_cohort(cohort, tmp_path / "people", "sex", None, said.append)
    assert (written.name, written.refused) == ("people_sex", ())
    return tmp_path / "people", said


def call(folder: Path, *words: str) -> str:
    """Call a module of the suite, which finds the dataset; return what it prints."""
    called = subprocess.run(
        [sys.executable, "-m", *words],
        # The suite may lie below our own settings of pytest, by which warnings are errors.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": "-o filterwarnings="},
        cwd=folder.parent, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert called.returncode == 0, called.stdout + called.stderr
    return called.stdout


def test_smoke_test_passes(templates, tmp_path):
    assert "2 passed" in call(tmp_path, "brainmarks.models.test_models", "slimbrain_tiny")


def test_people_without_the_outcome_are_listed(exported):
    folder, said = exported
    assert any("left out" in text and ", ".join(LEFT_OUT) in text for text in said)
    table = pd.read_csv(folder / "participants.tsv", sep="\t", keep_default_na=False)
    parts = table.set_index("participant_id")["part"]
    assert len(parts) == 12
    assert parts[[*LEFT_OUT]].tolist() == ["n/a", "n/a"]
    assert parts.drop([*LEFT_OUT]).value_counts().to_dict() == {
        "train": 6,
        "validation": 2,
        "test": 2,
    }


def test_the_suite_reads_what_its_own_reader_would(exported, cohort, tmp_path):
    folder, _ = exported
    script = """
import sys
import numpy as np
from brainmarks import nisc, readers
from brainmarks.datasets.registry import create_dataset
parts = create_dataset("people_sex", "mni")
print({name: sorted(part.dataset["sub"]) for name, part in parts.items()})
print(parts["train"].labels.tolist())
sample = next(s for p in parts.values() for s in p.dataset if s["sub"] == "01")
bold = readers.mni_reader()(sys.argv[1])
scaled, mean, std = nisc.scale(bold)
print(np.abs(sample["mean"].numpy() - mean).max() / np.abs(mean).max())
print(np.abs(sample["std"].numpy() - std).max() / std.max())
print(np.abs(sample["bold"].numpy() - scaled).max())
"""
    (tmp_path / "look.py").write_text(script)
    (bold,) = cohort.glob("sub-01/func/*_desc-preproc_bold.nii.gz")
    called = subprocess.run(
        [sys.executable, tmp_path / "look.py", bold],
        # The suite may lie below our own settings of pytest, by which warnings are errors.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTEST_ADDOPTS": "-o filterwarnings="},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert called.returncode == 0, called.stderr
    *_, parts, labels, mean, deviation, values = called.stdout.splitlines()
    people = [person for part in eval(parts).values() for person in part]
    assert sorted(people) == [f"{number:02d}" for number in range(1, 11)]
    assert eval(labels) == ["F", "M"]
    assert float(mean) < 1e-5
    assert float(deviation) < 1e-4
    assert float(values) < 0.005


@pytest.mark.parametrize("model", ["slimbrain_tiny", "connectome_schaefer400"])
def test_the_suites_command_judges_models_by_the_dataset(exported, model):
    folder, _ = exported
    told = "device=cpu batch_size=1 num_workers=1 n_trials=0 cv_folds=2".split()
    words = ["brainmarks.main_logistic", model, "cls", "people_sex", "--overrides", *told]
    assert f"| {model}" in call(folder, *words)


def test_two_labels_for_one_person_are_refused(templates, cohort, tmp_path):
    bold, other = (next(cohort.glob(f"sub-{label}/func/*bold.nii.gz")) for label in ("01", "02"))
    shutil.copy(bold, other)
    with pytest.raises(CallRefused, match=r"leak.*sub-01 again"):
        export_cohort(cohort, tmp_path / "out", "sex", None, str)
