"""Nipype's process pool, mended where a graph of short steps on many runs needs it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import Any

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

SECONDS_TO_END = 5.0


class Pool(MultiProcPlugin):  # type: ignore[misc]
    """A pool that outlives killed workers and finishes the runs it has begun first.

    Nipype waits for ever for a step whose process was killed, and takes all runs through one verb
    before the next, so that every prepared run is on disk at the same time.
    """

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args)
        self.pool = self._open()

    def end(self) -> None:
        """End all workers at once; each removes its own half-written files."""
        workers = list((self.pool._processes or {}).values())
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join(SECONDS_TO_END)
            worker.kill()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            max_workers=self.processors,
            mp_context=get_context("spawn"),
            initializer=_start_worker,
            initargs=(self._cwd,),
        )

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._taskid += 1
        try:
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        except BrokenProcessPool:
            self.pool = self._open()
            future = self.pool.submit(run_node, node, updatehash, self._taskid)
        future.add_done_callback(partial(self._collect, self._taskid))
        self._task_obj[self._taskid] = future
        return int(self._taskid)

    def _collect(self, task: int, future: Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is None:
            self._taskresult[task] = future.result()
        else:
            lines = traceback.format_exception(error)
            self._taskresult[task] = {"result": None, "traceback": lines, "taskid": task}

    def _sort_jobs(self, jobids: Iterable[int], **_: str) -> list[int]:
        return sorted(jobids, key=lambda job: (-self.procs[job].depth, job))


def quieten_nipype() -> None:
    """Let Nipype speak of warnings only: what happens is said by our own progress and log."""
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _start_worker(folder: str) -> None:
    quieten_nipype()
    os.chdir(folder)
    # Ctrl-C reaches every process of a terminal; only the parent decides, and then terminates us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Leaving by an exception lets half-written files be removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
