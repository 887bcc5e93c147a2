"""Something broke on the way; after an interrupted job."""

from __future__ import annotations

import errno
import signal
from contextlib import nullcontext

import torch

from slimbrain_app import device, embedding, files, prepare
from slimbrain_app.model import packages
from slimbrain_app.workflow import participant, plan

from .scenario import RUN, cut_short, provokes, raise_as


@provokes("disk-full")
def fill_the_disk(place):
    full = OSError(errno.ENOSPC, "No space left on device")
    place.patch.setattr(files.os, "fsync", raise_as(full))


def shrink_the_gpu(place):
    """Pretend that there is a GPU, and that it has no room for a model."""
    whole = packages.load_encoder

    def load(package, name):
        if name == "cpu":
            return whole(package, name)
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
            "3.94 GiB of which 1.21 GiB is free"
        )

    place.patch.setattr(device, "choose_device", lambda _: "cuda")
    place.patch.setattr(embedding, "hold_device", lambda _: nullcontext())
    place.patch.setattr(packages, "load_encoder", load)


@provokes("out-of-memory")
def name_a_gpu_that_is_too_small(place):
    shrink_the_gpu(place)
    return place.embed("--device", "cuda")


@provokes("worker-killed")
def lose_the_run_s_process(place):
    place.patch.setattr(participant, "run_graph", lambda *_: {RUN: "worker-killed"})
    return place.embed("--mem", "8GB")


@provokes("timeout")
def let_the_run_s_process_stand_still(place):
    place.patch.setattr(participant, "run_graph", lambda *_: {RUN: "timeout"})


@provokes("internal")
def put_a_fault_into_the_program(place):
    place.patch.setattr(prepare, "prepare_run", raise_as(IndexError("list index out of range")))


@provokes("a fault of ours")
def put_a_fault_into_the_planning(place):
    place.patch.setattr(plan, "make_plan", raise_as(IndexError("list index out of range")))


# After an interrupted job


@provokes("stopped")
def end_the_job(place):
    place.patch.setattr(participant, "open_output", lambda *_: signal.raise_signal(signal.SIGTERM))


@provokes("locked")
def hold_the_lock(place):
    with files.lock(place.output / "logs/sub-01.lock", ""):
        return place.embed()


@provokes("locked 2")
def hold_the_lock_where_there_are_none(place):
    place.patch.setattr(files.fcntl, "flock", raise_as(OSError(errno.ENOSYS, "no such function")))
    return hold_the_lock(place)


@provokes("still-written")
def call_while_the_file_grows(place):
    cut_short(place.bold, place.bold.stat().st_size // 2)


@provokes("Nothing was done")
def call_again(place):
    place.embed()
