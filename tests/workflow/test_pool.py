"""The pool on small graphs of steps that kill, stop or end themselves."""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pytest
from nipype.interfaces.utility import Function
from nipype.pipeline import engine as pe

from slimbrain_app.workflow.pool import Pool
from slimbrain_app.workflow.watchdog import Watchdog


def act(folder, name, deeds):
    """Do the deed of this turn, and write down who, when and what."""
    import json
    import os
    import signal
    import time
    from pathlib import Path

    turn = len(list(Path(folder).glob(f"{name}_*")))
    file = Path(folder) / f"{name}_{turn}"
    started = time.monotonic()
    file.write_text(json.dumps([started, None]))
    deed = deeds[min(turn, len(deeds) - 1)]
    if deed in ("SIGKILL", "SIGSTOP"):
        time.sleep(0.2)  # The others have begun.
        os.kill(os.getpid(), getattr(signal, deed))
    if deed == "kill the idle":
        time.sleep(1.5)
        parent = os.getppid()
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            is_worker = "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
            if is_worker and int(child) != os.getpid():
                os.kill(int(child), signal.SIGKILL)
        time.sleep(2.0)
    time.sleep(0.4)
    if deed == "raise":
        raise ValueError("a fault")
    file.write_text(json.dumps([started, time.monotonic()]))
    return name


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run steps, each with what it does on its first turn, its second and so on, two at once."""
    monkeypatch.chdir(tmp_path)
    turns = tmp_path / "turns"
    turns.mkdir()

    def run_steps(patience=1800.0, **deeds):
        graph = pe.Workflow("graph", base_dir=str(tmp_path))
        graph.config["execution"] = {"poll_sleep_duration": 0.02, "crashdump_dir": str(tmp_path)}
        for name, own in deeds.items():
            function = Function(["folder", "name", "deeds"], ["name"], function=act)
            node = pe.Node(function, name)
            node.inputs.trait_set(folder=str(turns), name=name, deeds=list(own))
            node.depth, node.run_name = 0, name
            graph.add_nodes([node])
        pool = Pool({"n_procs": 2, "memory_gb": 8})
        pool._watchdog = Watchdog(patience)
        try:
            graph.run(plugin=pool)
        except RuntimeError:
            pass
        finally:
            pool.end()
        return pool

    run_steps.turns = turns
    return run_steps


def spans(run, name) -> list[list[float | None]]:
    return [json.loads(file.read_text()) for file in sorted(Path(run.turns).glob(f"{name}_*"))]


def test_a_step_whose_process_was_killed_is_tried_once_more(run):
    pool = run(a=["SIGKILL", "end"], b=["end"])
    assert pool.lost == {}
    assert [ended is not None for _, ended in spans(run, "a")] == [False, True]
    assert spans(run, "b")[-1][1] is not None


def test_what_kills_its_process_twice_is_lost_and_the_others_end(run):
    pool = run(a=["SIGKILL"], b=["end"], c=["end"], d=["end"])
    assert pool.lost == {"a": "worker-killed"}
    assert len(spans(run, "a")) == 2
    assert all(spans(run, name)[-1][1] is not None for name in "bcd")


def test_a_second_turn_has_nothing_beside_it(run):
    run(a=["SIGKILL", "end"], b=["end"], c=["end"], d=["end"], e=["end"])
    ((_, _), (started, ended)) = spans(run, "a")
    others = [span for name in "bcde" for span in spans(run, name) if span[1] is not None]
    assert len(others) == 4
    assert all(end < started or start > ended for start, end in others)


def test_no_process_is_left_behind(run):
    """An idle process is killed: it took the lock on new work along, and the other one, whose exit
    was swallowed in the midst of a step, would wait for that lock for ever.
    """
    assert run(a=["end"], b=["kill the idle", "end"]).lost == {}
    limit = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < limit:
        time.sleep(0.1)
    assert multiprocessing.active_children() == []


def test_a_fault_is_no_loss_and_has_no_second_turn(run):
    pool = run(a=["raise"], b=["end"])
    assert pool.lost == {}
    assert len(spans(run, "a")) == 1


def test_a_process_that_stands_still_is_ended_and_named_so(run):
    pool = run(patience=2.5, a=["SIGSTOP"], b=["end"])
    assert pool.lost == {"a": "timeout"}
    assert spans(run, "b")[-1][1] is not None


def test_waiting_for_work_is_not_standing_still(run):
    """One of two processes has nothing to do for longer than patience lasts."""
    assert run(patience=0.5, a=["end"]).lost == {}
