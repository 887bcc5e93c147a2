"""Reading in other processes gives what reading in this one gives, or says why not."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import fields, is_dataclass
from itertools import islice

import pytest
import torch

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.records import Contract
from slimbrain_app.settings import Hide
from slimbrain_app.training.corpus import Item
from slimbrain_app.training.loader import make_loader
from slimbrain_app.training.samples import cut_steps, draw_pass
from slimbrain_app.training.windows import Windows

TINY = PRESETS["tiny"]


@pytest.fixture(autouse=True)
def one_thread():
    """Spare small arrays the threads, which wait for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def items(tmp_path_factory, prepared_runs):
    folder = tmp_path_factory.mktemp("runs")
    return [Item(recording, (0, 40, 80, 120)) for recording in prepared_runs(folder, 3)]


@pytest.fixture
def windows(items):
    return Windows(items, Contract(), TINY, Hide(), 0)


@pytest.fixture
def batches(items):
    return cut_steps(draw_pass(items, 4, 0, 1), 5)


def tensors_in(thing):
    """All tensors of nested records, in order."""
    if isinstance(thing, torch.Tensor):
        return [thing]
    if is_dataclass(thing):
        thing = [getattr(thing, field.name) for field in fields(thing)]
    if isinstance(thing, list | tuple):
        return list(itertools.chain.from_iterable(map(tensors_in, thing)))
    return []


def same(one, other):
    pairs = list(zip(tensors_in(one), tensors_in(other), strict=True))
    assert len(pairs) > 20
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def test_batches_are_the_same_to_the_last_byte_for_any_number_of_workers(windows, batches):
    here = list(make_loader(windows, batches, 0))
    assert [batch.views for batch in here] == [5, 5, 2]
    for workers in (1, 2):
        for one, other in zip(here, make_loader(windows, batches, workers), strict=True):
            assert same(one, other)


def test_what_is_left_of_a_pass_is_what_an_uninterrupted_one_would_have_read(windows, batches):
    whole = list(make_loader(windows, batches, 1))
    begun = make_loader(windows, batches, 1)
    first = next(begun)
    begun.close()
    rest = list(make_loader(windows, batches[1:], 1))
    for one, other in zip([first, *rest], whole, strict=True):
        assert same(one, other)


def test_batches_may_come_one_by_one_without_an_end(windows, batches):
    forever = itertools.cycle(batches)
    read = list(islice(make_loader(windows, forever, 1), 4))
    assert same(read[0], read[3])


def test_reading_takes_no_number_from_the_generator_of_the_process(windows, batches):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(make_loader(windows, batches, 0))
    list(make_loader(windows, batches, 1))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_refusal_comes_through_as_it_is(items, batches, workers):
    windows = Windows(items, Contract(), TINY, Hide(visible_places=0.01), 0)
    with pytest.raises(RunRefused, match="low-coverage") as caught:
        list(make_loader(windows, batches, workers))
    assert caught.value.file.startswith("sub-")


def test_a_fault_comes_through_as_it_is(items, batches):
    windows = Windows(items[:1], Contract(), TINY, Hide(), 0)
    with pytest.raises(IndexError):
        list(make_loader(windows, batches, 1))


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_killed_worker_ends_the_call_in_time_and_with_advice(windows, batches):
    handler = signal.getsignal(signal.SIGCHLD)
    reading = make_loader(windows, itertools.cycle(batches), 2)
    next(reading)
    victim = multiprocessing.active_children()[0]
    os.kill(victim.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(CallRefused, match="loader-died") as caught:
        for _ in reading:
            # Nothing is raised in the midst of a step, only where a batch is asked for.
            assert signal.getsignal(signal.SIGCHLD) == handler
    assert "memory" in caught.value.found
    assert time.monotonic() - began < 60
    del reading, caught
    gc.collect()
    assert wait_for(lambda: not multiprocessing.active_children())


def test_signals_to_a_whole_job_leave_workers_at_their_work(windows, batches):
    reading = make_loader(windows, itertools.cycle(batches), 1)
    next(reading)
    (worker,) = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        os.kill(worker.pid, number)
    assert [batch.views for batch in islice(reading, 5)] == [5, 2, 5, 5, 2]
    assert worker.is_alive()


def test_no_worker_outlives_its_loader(windows, batches):
    reading = make_loader(windows, itertools.cycle(batches), 2)
    next(reading)
    assert len(multiprocessing.active_children()) == 2
    reading.close()
    gc.collect()
    assert wait_for(lambda: not multiprocessing.active_children())
