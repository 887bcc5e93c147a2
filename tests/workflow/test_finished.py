"""Packages that an earlier call has made are taken, and nothing else of that call is left."""

import json
import shutil

import pytest

from slimbrain_app.model.packages import load_package
from slimbrain_app.settings import PretrainSettings
from slimbrain_app.training import publishing
from slimbrain_app.training.pretraining import Pretraining
from slimbrain_app.workflow import finetuning


def find_pretrained(folder, monkeypatch):
    told = json.loads((folder / publishing.RECORD).read_text())
    monkeypatch.setattr(publishing, "describe_origin", lambda *_: told)
    return publishing.find_finished(Pretraining(folder, PretrainSettings(), None), [])


def find_finetuned(folder, _):
    origin = {"people": "all"}
    (folder / finetuning.RECORD).write_text(json.dumps(origin))
    return finetuning.find_finished(folder, origin)


@pytest.mark.parametrize("find", [find_pretrained, find_finetuned])
def test_checkpoints_that_a_stop_kept_from_going_go_with_the_next_call(tmp_path, monkeypatch, find):
    folder = tmp_path / "mine"
    shutil.copytree(load_package("tiny").folder, folder)
    (folder / ".slimbrain-checkpoints").mkdir()
    (folder / ".slimbrain-checkpoints/state.pt").touch()
    assert find(folder, monkeypatch).sha256 == load_package("tiny").sha256
    assert not list(folder.glob(".slimbrain-*"))
