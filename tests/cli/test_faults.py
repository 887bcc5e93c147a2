"""The campaign of injected faults: that its judge sees what is wrong, and that some do no harm."""

from __future__ import annotations

import gzip
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from slimbrain_app.bids.status import join_status, write_status
from slimbrain_app.records import RunStatus

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
RUNS = ("sub-01_task-rest_run-01", "sub-02_task-rest_run-01")


@pytest.fixture(scope="module")
def load():
    """Return the import of a module of the campaign."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        yield import_module
        for name in [one for one in sys.modules if one == "faults" or one.startswith("campaign")]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def faults(load):
    return load("faults")


@pytest.fixture(scope="module")
def judging(load):
    return load("campaign.judging")


@pytest.mark.parametrize(
    ("name", "whole", "cut"),
    [
        ("a.json", b'{"a": 1}\n', 7),
        ("a.tsv", b"a\tb\n1\t2\n", 6),
        ("a.tsv", b"a\tb\n1\t2\n", 7),
        ("a.nii.gz", gzip.compress(b"brain", mtime=0), -1),
        ("a.html", b"<html></html>\n", 10),
        ("a.svg", b"<svg></svg>", 5),
        ("a.toml", b"a = 'b'\n", 6),
    ],
)
def test_a_torn_file_is_told_from_a_whole_one(judging, tmp_path, name, whole, cut):
    file = tmp_path / name
    file.write_bytes(whole)
    judging.read_whole(file, killed=False)
    file.write_bytes(whole[:cut])
    with pytest.raises((ValueError, OSError, EOFError, SyntaxError)):
        judging.read_whole(file, killed=False)


def test_sidecar_whose_checksums_are_of_other_files_is_torn(judging, tmp_path):
    sidecar = tmp_path / "out" / "a.json"
    sidecar.parent.mkdir()
    sidecar.with_suffix(".tsv").write_text("a\n1\n")
    sidecar.write_text('{"Outputs": {"a.tsv": "0000"}}')
    with pytest.raises(ValueError, match=r"a\.tsv"):
        judging.read_whole(sidecar, killed=False)


class Play:
    """A case in which a script stands for the command: it copies a clean output, and does more."""

    def __init__(self, load, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.judging, kinds = load("campaign.judging"), load("campaign.kinds")
        calls, stage = load("campaign.calls"), load("campaign.stage")
        self.expect = kinds.expect
        self.script = folder / "slimbrain"
        self.script.touch(0o755)
        patch.setattr(load("campaign.case"), "SLIMBRAIN", self.script)
        patch.setattr(stage, "CALL_SECONDS", 20.0)
        patch.setattr(stage, "SIGNAL_SECONDS", 0.2)
        self.clean = folder / "clean"
        dataset = folder / "dataset-2"
        for place in (dataset, self.clean):
            place.mkdir(parents=True)
        (dataset / "bold.nii.gz").write_bytes(gzip.compress(b"brain"))
        (self.clean / "mean.tsv").write_text("a\tb\n1\t2\n")
        (self.clean / "mean.json").write_text('{"a": 1}\n')
        np.save(self.clean / "mean.npy", np.arange(3))
        for run in RUNS:
            write_status(self.clean, run[4:6], [RunStatus(run=run, state="done")])
        join_status(self.clean)
        self.stage = stage.Stage(folder=folder, seconds={calls.EMBED: 0.0})
        self.stage.clean[calls.EMBED] = self.clean
        self.case = self.stage.begin(folder / "case", calls.EMBED)

    def judge(self, line: str = "", *expected: str, bound: float = 20.0) -> list[str]:
        """Return the columns of what is wrong after a call that does so."""
        self.write(line)
        self.case.bound = bound
        self.case.start()
        flaws = self.judging.judge_calls(self.case, self.expect(*expected or ("done",)))
        return self.list_columns(flaws)

    def judge_again(self, line: str = "") -> list[str]:
        self.write(line)
        return self.list_columns(self.judging.judge_again(self.case))

    def write(self, line: str) -> None:
        """Let the call be one that copies the clean output, does a line, and tells of the runs."""
        copied = f'out=$2\ninput=$1\nmkdir -p "$out"\ncp -r {self.clean}/. "$out"\n'
        self.script.write_text(f"#!/bin/sh\n{copied}{line}\necho ' reason '\n")

    def list_columns(self, flaws) -> list[str]:
        return sorted({flaw.column for flaw in flaws})


@pytest.fixture
def play(load, tmp_path, monkeypatch):
    return Play(load, tmp_path, monkeypatch)


def test_nothing_is_wrong_with_a_call_that_does_as_a_clean_one(play):
    assert play.judge() == []
    assert play.judge_again() == []


def test_a_call_without_end_is_a_hang_and_is_ended(play):
    assert "hang" in play.judge("exec sleep 60", bound=0.5)
    assert play.case.calls[0].ended


def test_a_process_left_behind_is_a_hang_and_is_ended(play):
    assert play.judge("setsid sleep 60 >/dev/null 2>&1 &") == ["hang"]
    left = [one for one in play.case.list_processes() if not is_ending(one)]
    assert left == []


def is_ending(process: int) -> bool:
    with suppress(OSError):
        return ") Z" in Path(f"/proc/{process}/stat").read_text()
    return True


@pytest.mark.parametrize("line", ["kill -9 $$", "echo '[no-mask]' >&2"])
def test_an_end_that_is_not_among_those_expected_is_seen(play, line):
    assert "wrong exit" in play.judge(line)


def test_an_end_that_is_among_those_expected_is_none(play):
    assert play.judge("kill -9 $$", "killed") == []


@pytest.mark.parametrize(
    "line",
    [
        "truncate -s 12 $out/mean.npy",
        "truncate -s 6 $out/mean.tsv",
        "truncate -s 4 $out/mean.json",
        "printf 'a\\tb\\n1\\t3\\n' > $out/mean.tsv",
        "printf 'a\\n' > $out/more.tsv",
        "touch $out/.slimbrain-0123-mean.tsv",
    ],
)
def test_a_file_that_is_half_written_other_or_left_over_is_seen(play, line):
    assert play.judge(line) == ["half-written"]


@pytest.mark.parametrize(
    "line",
    [
        "echo '{\"runs\": []}' > $out/logs/sub-02_status.json",
        "echo '[]' > $out/logs/status.json",
        "rm $out/logs/sub-01_status.json",
    ],
)
def test_a_run_that_is_not_listed_is_seen(play, line):
    assert play.judge(line) == ["half-written"]


def test_an_exit_code_that_is_not_that_of_the_runs_listed_is_seen(play):
    assert play.judge("echo ' reason '; exit 65", "too-short") == ["half-written"]


@pytest.mark.parametrize(
    "line",
    [
        "echo more >> $input/bold.nii.gz",
        "touch -d 2001-01-01 $input/bold.nii.gz",
        "rm $input/bold.nii.gz",
        "touch $input/more",
        "mv $input/bold.nii.gz $input/b; ln -s b $input/bold.nii.gz",
    ],
)
def test_an_input_that_was_changed_is_seen(play, line):
    assert play.judge(line) == ["input changed"]


@pytest.mark.parametrize(
    "line",
    [
        "exit 1",
        "rm $out/mean.npy",
        "touch $out/more",
        "touch $out/.slimbrain-0123-mean.tsv",
        "echo '{\"a\": 2}' > $out/mean.json",
    ],
)
def test_what_does_not_come_right_without_the_fault_is_seen(play, line):
    assert play.judge() == []
    assert play.judge_again(line) == ["not resumable"]


def test_fewer_faults_are_spread_over_the_kinds_in_proportion(faults):
    kinds = [faults.Kind("often", 60, None), faults.Kind("seldom", 20, None)]
    chosen = Counter(kind.name for kind, _ in faults.choose_faults(kinds, 8))
    assert chosen == {"often": 6, "seldom": 2}


def test_the_campaign_is_of_two_hundred_faults_and_more(faults):
    assert sum(kind.faults for kind in faults.KINDS.values()) >= 200


@pytest.mark.slow
def test_ten_faults_do_no_harm():
    kinds = ["call-killed", "worker-killed", "signal", "bold-cut", "output-damaged"]
    command = [sys.executable, SCRIPT, "--faults", "10", "--only", *kinds]
    result = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "| **all** | | 10 |" in result.stdout
