"""Checkpoints: whole, of this training or refused, and as good as never having stopped."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from slimbrain_app.errors import CallRefused
from slimbrain_app.training.checkpoint import resume, write_checkpoint
from slimbrain_app.training.distributed import Processes
from slimbrain_app.training.loop import train

ALONE = Processes()
SCRIPT = Path(__file__).with_name("drill.py")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def trained(drill):
    """A training after one pass of four."""
    state, settings = drill.make_state(drill.Drill()), drill.Drill()
    shares = [next(drill.list_shares(settings, ALONE, done)) for done in range(3)]
    plan = drill.make_plan(replace(settings, minutes=1e9), ALONE.device)
    train(state, shares, plan, ALONE, save=lambda: None, watch=lambda _: None)
    return state


@pytest.fixture
def checkpoint(drill, trained, tmp_path):
    path = tmp_path / "training.pt"
    write_checkpoint(path, trained, drill.IDENTITY)
    return path


def refusal_of(drill, path, identity=None):
    with pytest.raises(CallRefused) as caught:
        resume(path, drill.make_state(drill.Drill()), identity or drill.IDENTITY)
    assert path.exists()
    return caught.value


def require_equal(one, other):
    """Compare tables of tensors to the bit, with everything around them."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            require_equal(value, other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            require_equal(mine, theirs)
    else:
        assert one == other


def test_everything_comes_back_to_the_bit(drill, trained, checkpoint):
    state = drill.make_state(drill.Drill())
    assert resume(checkpoint, state, drill.IDENTITY)
    assert state.done == 3
    for name, part in trained.parts.items():
        require_equal(part.state_dict(), state.parts[name].state_dict())
    names = trained.objective.state_dict()
    assert not torch.equal(
        names["target.blocks.0.mlp.fc1.weight"], names["context.blocks.0.mlp.fc1.weight"]
    )


def test_without_a_checkpoint_nothing_is_resumed(drill, tmp_path):
    state = drill.make_state(drill.Drill())
    assert not resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert state.done == 0


@pytest.mark.parametrize(
    ("field", "reason"), [("settings", "settings-changed"), ("corpus", "corpus-changed")]
)
def test_a_checkpoint_of_another_training_is_refused(drill, checkpoint, field, reason):
    other = replace(drill.IDENTITY, **{field: "others"})
    assert refusal_of(drill, checkpoint, other).reason == reason


@pytest.mark.parametrize("place", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_changed_byte_is_noticed(drill, checkpoint, place):
    with zipfile.ZipFile(checkpoint) as archive:
        largest = sorted(archive.infolist(), key=lambda info: info.file_size)[-1]
    content = bytearray(checkpoint.read_bytes())
    at = content.index(largest.filename.encode()) + len(largest.filename) + 64
    content[at + int(place * (largest.file_size - 128))] ^= 1
    checkpoint.write_bytes(content)
    assert refusal_of(drill, checkpoint).reason == "checkpoint-bad"


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_half_a_file_is_refused(drill, checkpoint, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(share * len(content))])
    assert refusal_of(drill, checkpoint).reason == "checkpoint-bad"


@pytest.mark.parametrize("missing", ["objective", "optimiser", "observer", "done", "version"])
def test_a_checkpoint_without_a_part_is_refused(drill, checkpoint, missing):
    content = torch.load(checkpoint, weights_only=True)
    del content[missing]
    torch.save(content, checkpoint)
    assert refusal_of(drill, checkpoint).reason == "checkpoint-bad"


def test_a_checkpoint_of_another_network_is_refused(drill, checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    content["objective"]["predictor.mask_token"] = torch.zeros(3)
    torch.save(content, checkpoint)
    assert refusal_of(drill, checkpoint).reason == "checkpoint-bad"


class Trap:
    """Pickled, it would make a folder when read."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_nothing_pickled_is_executed(drill, tmp_path):
    path, made = tmp_path / "training.pt", tmp_path / "made"
    torch.save({"version": 1, "objective": Trap(made)}, path)
    assert refusal_of(drill, path).reason == "checkpoint-bad"
    assert not made.exists()


def test_a_full_disk_is_told_and_leaves_the_last_checkpoint(
    drill, trained, checkpoint, monkeypatch
):
    before = checkpoint.read_bytes()

    def fill(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(CallRefused) as caught:
        write_checkpoint(checkpoint, trained, drill.IDENTITY)
    assert caught.value.reason == "disk-full"
    assert checkpoint.read_bytes() == before
    assert [path.name for path in checkpoint.parent.iterdir()] == ["training.pt"]


def test_what_a_killed_writer_left_is_cleared_away(drill, trained, checkpoint):
    leftover = checkpoint.with_name(".slimbrain-0123456789ab-training.pt")
    leftover.write_bytes(b"half")
    write_checkpoint(checkpoint, trained, drill.IDENTITY)
    assert not leftover.exists()


def start(folder, *settings):
    return subprocess.Popen(
        [sys.executable, SCRIPT, folder, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train_through(drill, folder, *settings):
    """Train to the end in this process, from a checkpoint if there is one; return the weights."""
    folder.mkdir(exist_ok=True)
    drill.run(folder, drill.read_drill(settings), ALONE)
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_like_one_that_was_not(drill, tmp_path):
    settings = ("passes=8", "seconds=0.02", "dropout=1", "at_once=2")
    folder, chance, kills = tmp_path / "killed", random.Random(20251125), 0
    folder.mkdir()
    while kills < 3:
        process = start(folder, *settings)
        assert process.stdout.readline(), process.stderr.read()
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        assert not (folder / "weights.pt").exists()
    resumed = train_through(drill, folder, *settings)
    require_equal(train_through(drill, tmp_path / "whole", *settings), resumed)


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves_and_ends_with_try_again_and_the_rest_comes_to_the_same(
    drill, tmp_path, number
):
    settings = ("passes=3", "seconds=0.05", "minutes=1000")
    process = start(tmp_path, *settings)
    assert process.stdout.readline()
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 75
    assert "[stopped]" in errors
    state = drill.make_state(drill.Drill())
    assert resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert 1 <= state.done < 9
    resumed = train_through(drill, tmp_path, *settings)
    require_equal(train_through(drill, tmp_path / "whole", *settings), resumed)
