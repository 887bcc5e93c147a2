"""What a dry run tells beforehand, against what is then there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from slimbrain_app.costs import foresee
from slimbrain_app.model.packages import create_package, load_encoder, load_package
from slimbrain_app.settings import Output, ParticipantSettings, Rank
from slimbrain_app.workflow.forecast import count_weights, forecast
from slimbrain_app.workflow.participant import carry_out
from slimbrain_app.workflow.plan import make_plan

SETTINGS = ParticipantSettings(rank=Rank(windows=2), output=Output(save_prepared=True))


@pytest.fixture
def dataset(simulated, tmp_path) -> Path:
    return Path(shutil.copytree(simulated, tmp_path / "fmriprep"))


def foretell(dataset, output, settings=SETTINGS):
    return {row.run: row for row in forecast(make_plan(dataset, output, settings))}


def test_actions_follow_what_is_there(dataset, tmp_path):
    output = tmp_path / "out"
    (first, second) = foretell(dataset, output)
    carry_out(make_plan(dataset, output, SETTINGS), None, ["slimbrain"], lambda *_: None)
    (bold,) = (dataset / "sub-02").rglob("*_bold.nii.gz")
    bold.write_bytes(bold.read_bytes() + b"\0")
    (bold,) = (dataset / "sub-01").rglob("*_bold.nii.gz")
    assert {run: row.action for run, row in foretell(dataset, output).items()} == {
        first: "skip",
        second: "redo",
    }
    bold.unlink()
    bold.symlink_to("../annex/gone")
    row = foretell(dataset, output)[first]
    assert (row.action, row.why, row.status.state) == ("refuse", "missing-content", "refused")
    kept = sum(file.stat().st_size for file in (output / "sub-01").rglob("*") if file.is_file())
    assert 0.3 < kept / foretell(dataset, tmp_path / "new")[second].cost.kept_bytes < 3


def test_costs_grow_with_what_is_asked(dataset, tmp_path):
    def total(**settings):
        rows = foretell(dataset, tmp_path / "out", ParticipantSettings(**settings)).values()
        return sum(row.cost.seconds for row in rows)

    assert total(rank=Rank(windows=1)) < total(rank=Rank(windows=2))
    # There are no more windows than there are.
    assert total(rank=Rank(windows=99)) == total(rank=Rank(windows="all"))


def test_weights_are_counted_without_loading_them(tmp_path):
    for package in (load_package("tiny"), create_package(tmp_path / "base", "base", seed=0)):
        encoder = load_encoder(package)
        assert count_weights(package) == sum(each.numel() for each in encoder.parameters())


def test_only_explaining_needs_the_memory_of_gradients():
    asked = {"volumes": 100, "warped": False, "views": 8, "weights": 10**6, "saved": False}
    plain, explained = (foresee(explained=number, **asked) for number in (0, 1))
    assert plain.memory_gb < explained.memory_gb
    assert plain.seconds < explained.seconds
