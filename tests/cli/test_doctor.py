"""The doctor as it is called."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from slimbrain_app.cli import tools
from slimbrain_app.model.packages import installed_packages

TOOLS = Path(sys.executable).parent / "slimbrain-tools"
ALWAYS = ["work folder", "processors", "memory", "device", "model", "templates", "home"]
ALL = ["input", "first participant", "output", "locks", "space", *ALWAYS]
STATES = ("well", "mind", "fails")


def call(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [TOOLS, "doctor", *map(str, words)],
        env={**os.environ, "COLUMNS": "400", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def read_states(table: str) -> dict[str, str]:
    """Return the state of each check, in the order of the rows."""
    rows = [line.split("  ") for line in table.splitlines()[1:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    return {cell[0]: next(word for word in cell[1].split() if word in STATES) for cell in cells}


def test_a_machine_that_has_all_ends_with_0_and_keeps_nothing(simulated, tmp_path):
    result = call(simulated, tmp_path / "new" / "out", "--device=cpu", MPLCONFIGDIR="/proc/none")
    states = read_states(result.stdout)
    assert list(states) == ALL
    assert "fails" not in states.values()
    assert states["home"] == "mind"  # The one thing that matters of a home is said.
    assert result.returncode == 0, result.stdout
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_every_check_goes_on_after_another_failed_and_the_worst_code_is_returned(tmp_path):
    package = shutil.copytree(installed_packages() / "tiny", tmp_path / "tiny")
    (package / "config.json").write_text("{}")
    (tmp_path / "file").touch()
    dataset, output = tmp_path / "nowhere", tmp_path / "file" / "out"
    words = (f"--work-dir={dataset}/work", f"--model={package}", "--device=cuda:99")
    result = call(dataset, output, *words)
    states = read_states(result.stdout)
    assert list(states) == ALL
    failing = {name for name, state in states.items() if state == "fails"}
    lost = {"input", "first participant", "output", "locks", "work folder", "device", "model"}
    assert failing == lost
    assert result.returncode == 73


@pytest.mark.parametrize(
    ("words", "code", "failing"),
    [
        (["{dataset}", "{dataset}"], 64, "output"),
        (["{dataset}", "{dataset}/sub-01/out"], 64, "output"),
        (["{dataset}", "out", "--work-dir={dataset}/work"], 64, "work folder"),
        (["--model=nothing"], 78, "model"),
        (["nowhere"], 66, "input"),
        (["nowhere", "--model=nothing", "--device=cuda:99"], 69, "device"),
    ],
)
def test_what_fails_decides_the_code(
    simulated, tmp_path, monkeypatch, capsys, words, code, failing
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    words = [word.format(dataset=simulated) for word in words]
    assert tools.main(["doctor", *words]) == code
    states = read_states(capsys.readouterr().out)
    assert states[failing] == "fails"
    assert list(states)[-len(ALWAYS) :] == ALWAYS
    assert list(tmp_path.iterdir()) == []
