"""Odd and broken inputs through the whole command: each ends as its folder says it should."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from slimbrain_app.cli.app import main
from slimbrain_app.prepare.store import load_prepared

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "edge"
CASES = {file.parent.name: json.loads(file.read_text()) for file in FOLDER.glob("*/expected.json")}
ALIKE = sorted(case for case, expected in CASES.items() if expected.get("same_as") == "ras")


@dataclass(frozen=True)
class Ending:
    """What a call on a case came to."""

    code: int
    runs: list[dict]
    output: Path

    def restore_signal(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the prepared signal and its quantisation step per voxel."""
        (folder,) = self.output.rglob("*_prepared")
        assert load_prepared(folder).tr == 2.0
        scale = np.load(folder / "scale.npy")
        return np.load(folder / "signal.npy") * scale + np.load(folder / "mean.npy"), scale


@pytest.fixture(scope="module")
def end_of(tmp_path_factory):
    """Return a function that calls SlimBrain on a case, once."""

    @cache
    def call(case: str) -> Ending:
        folder = tmp_path_factory.mktemp("edge")
        dataset, output = FOLDER / case, folder / "out"
        if (dataset / "make.py").exists():
            subprocess.run([sys.executable, dataset / "make.py", folder / case], check=True)
            dataset = folder / case
        code = main([str(dataset), str(output), "participant", "--nprocs", "1", "--save-prepared"])
        status = output / "logs/status.json"
        people = json.loads(status.read_text()) if status.exists() else []
        return Ending(code, [run for person in people for run in person["runs"]], output)

    return call


@pytest.mark.parametrize("case", sorted(CASES))
def test_case_ends_as_expected(case, end_of, capsys):
    expected, ending = CASES[case], end_of(case)
    assert ending.code == expected["exit"]
    if ending.runs:
        assert len(ending.runs) == expected.get("runs", 1)
        assert {run["reason"] for run in ending.runs} == {expected["reason"]}
    else:
        assert f"[{expected['reason']}]" in capsys.readouterr().err
    assert "warns" not in expected or any(run["warnings"] for run in ending.runs)
    assert all(str(volume) in ending.runs[0]["message"] for volume in expected.get("volumes", ()))


@pytest.mark.parametrize("case", ALIKE)
def test_case_gives_the_prepared_run_of_the_plain_one(case, end_of):
    """Up to the rounding of the stored values: a step and a half of the quantisation."""
    (signal, scale), (plain, _) = end_of(case).restore_signal(), end_of("ras").restore_signal()
    assert signal.shape == plain.shape
    assert (np.abs(signal - plain) / np.where(scale > 0, scale, 1)).max() < 1.5


def test_native_and_t1w_runs_reach_the_model_grid(shared_data, tmp_path):
    arguments = [str(shared_data / "native"), str(tmp_path), "participant", "--nprocs", "1"]
    assert main(arguments) == 0
    facts = [json.loads(file.read_text()) for file in sorted(tmp_path.rglob("*mean*.json"))]
    assert [fact["Ladder"]["Rung"] for fact in facts] == [1, 2]
    assert all(fact["Coverage"] > 0.9 for fact in facts)
    assert all(any("_xfm." in source for source in fact["Sources"]) for fact in facts)
