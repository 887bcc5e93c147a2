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


LONG = 300 * "x"
# A place for the output or the work folder, which row says what of it, and the code.
ODD = [
    ("/proc/x", "output", "fails", 73),
    ("/proc/self/x/y", "output", "fails", 73),
    ("/sys/x", "output", "fails", 73),
    ("/dev/null", "output", "fails", 73),
    ("/dev/null/x", "output", "fails", 73),
    ("file", "output", "fails", 73),
    ("file/x", "output", "fails", 73),
    (LONG, "output", "fails", 73),
    (f"new/{LONG}/x", "output", "fails", 73),
    ("nowhere", "output", "well", 0),
    ("nowhere/x", "output", "well", 0),
    ("new/../other", "output", "well", 0),
    ("loop", "output", "fails", 73),
    ("loop/x", "output", "fails", 73),
    ("/proc/x", "work folder", "fails", 73),
    ("file", "work folder", "fails", 73),
    (LONG, "work folder", "fails", 73),
    ("nowhere", "work folder", "fails", 73),
    ("nowhere/x", "work folder", "fails", 73),
    ("loop", "work folder", "fails", 64),
    ("new/x/../../../../y", "work folder", "well", 0),
]


@pytest.fixture
def odd(tmp_path, monkeypatch):
    """A folder with a file, a link to what isn't there, and one to itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent" / "at all")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize(("place", "row", "state", "code"), ODD)
def test_an_odd_place_is_a_finding_of_its_row_and_nothing_is_left(
    simulated, odd, capsys, place, row, state, code
):
    before = sorted(odd.iterdir())
    words = [place] if row == "output" else ["out", f"--work-dir={place}"]
    assert tools.main(["doctor", str(simulated), *words]) == code
    table = capsys.readouterr().out
    assert read_states(table)[row] == state
    assert "nothing that we foresaw" not in table
    assert sorted(odd.iterdir()) == before


@pytest.mark.parametrize("place", ["/dev/null", "file", "file/x", LONG, "nowhere", "loop"])
def test_an_odd_input_is_a_finding(odd, capsys, place):
    code = tools.main(["doctor", place, "out"])
    table = capsys.readouterr().out
    assert code == 66
    assert read_states(table)["input"] == "fails"
    assert "nothing that we foresaw" not in table


def test_a_word_with_a_nul_is_refused(odd, capsys):
    assert tools.main(["doctor", "in", "a\0b"]) == 64
    assert "NUL" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("setpriv"), reason="needs root")
def test_folders_that_may_be_listed_but_not_entered_are_findings(simulated, odd):
    source = shutil.copytree(simulated, odd / "in")
    source.chmod(0o744)
    for above in (odd, *list(odd.parents)[:-1]):
        if above.stat().st_uid == 0:
            above.chmod(above.stat().st_mode | 0o111)
    lead = "import sys; from slimbrain_app.cli.tools import main; sys.exit(main(sys.argv[1:]))"
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = subprocess.run(
        [*words, sys.executable, "-B", "-c", lead, "doctor", source, odd / "out"],
        env={**os.environ, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
    )
    if "Permission denied" in done.stderr and not done.stdout:
        pytest.skip("another user can't start this Python")
    assert "nothing that we foresaw" not in done.stdout
    assert done.stderr == ""
    states = read_states(done.stdout)
    assert (states["input"], states["first participant"]) == ("fails", "fails")
    assert states["output"] == "fails"
    assert done.returncode == 73
