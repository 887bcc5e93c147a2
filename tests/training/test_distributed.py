"""Several processes: the same training as one alone, and an end for all where one fails."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from slimbrain_app.errors import CallRefused
from slimbrain_app.training import distributed
from slimbrain_app.training.checkpoint import resume
from slimbrain_app.training.distributed import Processes, join_processes, process_failed

SCRIPT = Path(__file__).with_name("drill.py")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
VARIABLES = {
    "RANK": "0",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29400",
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(processes, folder, *settings):
    return subprocess.Popen(
        [*TORCHRUN, str(processes), SCRIPT, folder, *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read(lines):
    return [json.loads(line) for line in lines.splitlines() if line.startswith("{")]


def test_two_processes_train_as_one(drill, tmp_path):
    process = start(2, tmp_path, "at_once=1")
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    shared = read(out)
    alone = drill.run(tmp_path / "alone", drill.Drill(), Processes())
    # The last step of each pass has one view: nothing for the second process.
    assert [step["views"] for step in shared] == [4, 4, 1] * 4
    for one, other in zip(shared, alone, strict=True):
        assert one["loss"] == pytest.approx(other.loss, rel=1e-4)
        assert one["kinds"] == pytest.approx(other.kinds, rel=1e-4)
        assert one["gradient_norm"] == pytest.approx(other.gradient_norm, rel=1e-3)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, expected in torch.load(tmp_path / "alone/weights.pt", weights_only=True).items():
        if not name.endswith("qkv.bias"):  # Of keys: no gradient but rounding.
            torch.testing.assert_close(weights[name], expected, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_all_and_names_the_sample(drill, tmp_path):
    process = start(2, tmp_path, "nan_at=5")
    out, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert len(read(out)) == 4
    assert "[diverged]" in errors
    assert "the batch of view 14" in errors  # The second process has views 14 and 16 of step 5.
    assert "Traceback" not in errors.partition("ChildFailedError")[0].rpartition("[diverged]")[0]
    state = drill.make_state(drill.Drill())
    assert resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert state.done == 4


@pytest.mark.slow
def test_where_one_process_can_not_read_the_others_end_too(tmp_path):
    process = start(2, tmp_path, "fail_at=3")
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "the disk is gone" in errors


def find_children(process):
    """Return processes that torchrun has started, by rank."""
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            variables = dict(
                word.split("=", 1) for word in (folder / "environ").read_text().split("\0") if word
            )
        except (OSError, ValueError):
            continue
        if parent == process.pid and "RANK" in variables:
            ranks[int(variables["RANK"])] = int(folder.name)
    return ranks


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("whom", ["torchrun", "second process"])
def test_a_signal_to_any_of_them_stops_all_after_one_checkpoint(drill, tmp_path, whom):
    process = start(2, tmp_path, "passes=40", "seconds=0.05", "minutes=1000")
    while not process.stdout.readline().startswith("{"):
        assert process.poll() is None, process.stderr.read()
    if whom == "torchrun":
        process.terminate()
    else:
        os.kill(find_children(process)[1], signal.SIGUSR1)
    _, errors = process.communicate(timeout=300)
    assert "[stopped]" in errors
    state = drill.make_state(drill.Drill())
    assert resume(tmp_path / "training.pt", state, drill.IDENTITY)
    assert f"after step {state.done};" in errors


def test_without_a_launcher_a_process_is_alone():
    with join_processes("cpu", {}) as processes:
        assert (processes.rank, processes.size, processes.first) == (0, 1, True)
        assert processes.any(False, True) == (False, True)
        assert processes.sum(torch.ones(2)).tolist() == [1, 1]
        assert processes.gather("one") == ["one"]
        done = []
        processes.run_first("work", lambda: done.append(1))
        assert done == [1]


def refusal_of(device, environment, **named):
    with pytest.raises(CallRefused) as caught, join_processes(device, environment, **named):
        pass
    return caught.value


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_missing_variables_are_named(missing):
    without = {name: value for name, value in VARIABLES.items() if name != missing}
    refusal = refusal_of("cpu", without)
    assert refusal.reason == "rendezvous"
    assert refusal.found == f"without {missing}"
    assert "torchrun" in refusal.advice


@pytest.mark.parametrize("size", ["two", "-1", "2.0"])
def test_numbers_that_are_none_are_refused(size):
    assert refusal_of("cpu", VARIABLES | {"WORLD_SIZE": size}).reason == "rendezvous"


def test_a_port_in_use_is_told(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment = VARIABLES | {"MASTER_PORT": str(server.getsockname()[1])}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        refusal = refusal_of("cpu", environment, meeting=timedelta(seconds=5))
    assert refusal.reason == "rendezvous"
    assert "in use" in refusal.found
    assert "--master-port" in refusal.advice


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_do_not_come_are_not_waited_for_for_ever(monkeypatch, rank):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = VARIABLES | {"RANK": rank, "MASTER_PORT": str(port)}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refusal = refusal_of("cpu", environment, meeting=timedelta(seconds=1))
    assert refusal.reason == "rendezvous"
    assert "2 processes" in refusal.expected


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    refusal = refusal_of("cuda", VARIABLES | {"RANK": "1", "LOCAL_RANK": "1"})
    assert refusal.reason == "device-missing"
    assert "process 1" in refusal.expected
    assert "--nproc-per-node" in refusal.advice


def test_several_processes_do_not_share_mps(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert refusal_of("mps", VARIABLES).reason == "device-missing"


def wait_in_thread(store, found):
    def wait():
        try:
            Processes(rank=1, size=2, store=store).run_first("work", lambda: found.append("worked"))
            found.append("went on")
        except CallRefused as error:
            found.append(error.reason)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_others_wait_until_the_first_has_worked(monkeypatch):
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.01)
    store, found = dist.HashStore(), []
    thread = wait_in_thread(store, found)

    def work():
        time.sleep(0.2)
        found.append("first")

    Processes(rank=0, size=2, store=store).run_first("work", work)
    thread.join()
    assert found == ["first", "went on"]


def test_others_end_if_the_first_fails(monkeypatch):
    monkeypatch.setattr(distributed, "_POLL_SECONDS", 0.01)
    store, found = dist.HashStore(), []
    thread = wait_in_thread(store, found)

    def fail():
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        Processes(rank=0, size=2, store=store).run_first("work", fail)
    thread.join()
    assert found == ["process-failed"]


def test_an_error_lets_go_of_replicas_before_the_process_group_ends(drill, monkeypatch):
    # One that outlived the group would be its last holder, and now and then wait for ever.
    shared, outlived = [], []

    def fail(processes):
        replica = distributed.Replica(drill.make_state(drill.Drill()).objective, processes)
        shared.append(weakref.ref(replica.shared))
        try:
            raise OSError("the disk is gone")
        except OSError as error:
            raise process_failed("an error") from error

    def meet(rank, size, device, meeting):
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        return store

    def end():
        outlived.extend(one for one in shared if one() is not None)
        destroy()

    destroy = dist.destroy_process_group
    monkeypatch.setattr(distributed, "_meet", meet)
    monkeypatch.setattr(dist, "destroy_process_group", end)
    with pytest.raises(CallRefused), join_processes("cpu", VARIABLES) as processes:
        fail(processes)
    assert shared and not outlived
