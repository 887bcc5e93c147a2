"""Faults that strike processes: they are killed, told to end, or made to stand still."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from campaign.calls import Call
from campaign.case import Case
from campaign.kinds import Expected, expect, kind

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@kind("call-killed", 20, processes=(1, 2))
def kill_call(case: Case) -> Expected:
    """The call is killed by SIGKILL."""
    case.start_and_wait().process.kill()
    return expect("killed", "done")


@kind("worker-killed", 10, processes=(2,))
def kill_worker(case: Case) -> Expected:
    """One of the call's workers is killed by SIGKILL."""
    strike_worker(case, case.start_and_wait(), signal.SIGKILL)
    return expect("done")


@kind("workers-killed", 3, processes=(2,))
def kill_workers(case: Case) -> Expected:
    """Workers are killed again and again."""
    call = case.start()
    for _ in range(case.draw.randint(3, 6)):
        strike_worker(case, call, signal.SIGKILL)
        call.wait(case.draw.uniform(0, case.seconds / 3))
    return expect("done", "worker-killed")


@kind("signal", 14, processes=(1, 2))
def signal_call(case: Case) -> Expected:
    """SIGTERM, SIGINT or SIGUSR1 reaches the call."""
    return stop(case)


@kind("signal-to-all", 8, processes=(2,))
def signal_group(case: Case) -> Expected:
    """The same, to all processes of the call."""
    return stop(case, lambda call, number: os.killpg(call.process.pid, number))


@kind("signal-twice", 6, processes=(1, 2))
def signal_twice(case: Case) -> Expected:
    """The same, twice within a second."""

    def strike(call: Call, number: int) -> None:
        send(call, number)
        time.sleep(case.draw.uniform(0, 1))
        send(call, number)

    return stop(case, strike)


@kind("worker-stopped", 5, processes=(2,))
def halt_worker(case: Case) -> Expected:
    """A worker, or the call itself, stands still for seconds (SIGSTOP, SIGCONT)."""
    call = case.start_and_wait()
    halted: int | None = call.process.pid
    if case.draw.random() < 0.7:
        halted = strike_worker(case, call, signal.SIGSTOP)
    else:
        send(call, signal.SIGSTOP)
    time.sleep(case.draw.uniform(0.5, 5))
    if halted is not None:
        with suppress(ProcessLookupError):
            os.kill(halted, signal.SIGCONT)
    return expect("done")


def send(call: Call, number: int) -> None:
    call.process.send_signal(number)  # To nobody if it has ended.


def strike_worker(case: Case, call: Call, number: int) -> int | None:
    """Send a signal to one of the workers, once there is one."""
    while not call.has_told:
        if workers := case.list_workers(call):
            worker = case.draw.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker, number)
                return worker
        time.sleep(0.02)
    return None


def stop(
    case: Case,
    strike: Callable[[Call, int], None] = send,
    numbers: Sequence[signal.Signals] = STOPPING,
) -> Expected:
    """Start the call, and strike it with one of the signals; it ends soon."""
    call = case.start_and_wait()
    case.bound = case.stage.signal_seconds
    number, late = case.draw.choice(numbers), call.has_told
    if not call.ended:
        strike(call, number)
    told = ["done"] if late or call.has_told else []
    return expect("killed" if number == signal.SIGKILL else "stopped", *told)
