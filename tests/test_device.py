"""Devices: the one that is taken, and whose turn it is."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from slimbrain_app.device import choose_device, find_hindrance, hold_device
from slimbrain_app.errors import CallRefused, Exit

HOLD = """
import sys, time
from pathlib import Path
from slimbrain_app.device import hold_device
with hold_device(sys.argv[1], Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def hold(tmp_path):
    """Hold a device in a process of its own."""
    started = []

    def start(device, seconds):
        command = [sys.executable, "-c", HOLD, device, str(tmp_path), str(seconds)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_gpu_is_held_by_one_process_at_a_time(hold, tmp_path):
    hold("mps", 1.0)
    start = time.monotonic()
    with hold_device("mps", tmp_path):
        assert time.monotonic() - start > 0.5


def test_a_killed_process_holds_nothing(hold, tmp_path):
    hold("mps", 1000).kill()
    with hold_device("mps", tmp_path):
        pass


def test_a_cpu_is_shared(hold, tmp_path):
    first = hold("cpu", 1000)
    with hold_device("cpu", tmp_path):
        assert first.poll() is None
    assert list(tmp_path.iterdir()) == []


def test_auto_chooses_a_device_that_is_there():
    assert choose_device(choose_device("auto")) == choose_device("auto")
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["cuda:99", "mps:7"])
def test_a_device_that_is_not_there_is_refused_with_the_container_flags(name):
    with pytest.raises(CallRefused) as caught:
        choose_device(name)
    assert caught.value.reason == "device-missing"
    assert caught.value.exit_code == Exit.UNAVAILABLE
    assert "--nv" in caught.value.advice and "--gpus all" in caught.value.advice


@pytest.mark.parametrize(
    ("cuda", "driver", "hinders"),
    [
        ("11.8", "450.80.02", False),
        ("12.4", "525.60.13", False),
        ("12.4", "520.61.05", True),
        ("13.0", "575.57.08", True),
        ("13.0", "580.65.06", False),
        ("99.0", "580.65.06", False),
        ("12.4", None, False),
    ],
)
def test_a_driver_serves_all_builds_of_its_major_version_and_older(cuda, driver, hinders):
    assert bool(find_hindrance(cuda, driver)) == hinders


def test_a_driver_that_is_too_old_is_said_where_its_device_is_asked_for(tmp_path, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    version = tmp_path / "version"
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.82.01  Wed Oct 27\n")
    with pytest.raises(CallRefused) as caught:
        choose_device("cuda", version)
    assert caught.value.exit_code == Exit.UNAVAILABLE
    assert "driver 470.82.01 is too old for CUDA 12.8, which needs 525" in caught.value.found
    assert torch.__version__ in caught.value.found


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "CPU"])
def test_a_device_of_an_unknown_name_is_a_usage_error(name):
    with pytest.raises(CallRefused) as caught:
        choose_device(name)
    assert caught.value.exit_code == Exit.USAGE
