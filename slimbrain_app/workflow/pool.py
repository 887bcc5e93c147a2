"""Nipype's process pool, mended where a graph of short steps on many runs needs it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context, parent_process
from typing import Any, NoReturn

from nipype.pipeline.plugins.multiproc import MultiProcPlugin, run_node

from slimbrain_app.workflow.watchdog import Watchdog

LOGGER = logging.getLogger("slimbrain")
SECONDS_TO_END = 5.0


class Pool(MultiProcPlugin):  # type: ignore[misc]
    """A pool that outlives killed workers and finishes the runs it has begun first.

    Nipype waits for ever for a step whose process was killed, and takes all runs through one verb
    before the next, so that every prepared run is on disk at the same time.

    Steps whose process was lost are tried once more at the end, one at a time: what was killed for
    want of memory has all of it then, and what was only near is not blamed.

    Steps on a GPU have one process for all of them, beside the others.

    Attributes
    ----------
    lost : dict of str to str
        Runs that lost their process twice, and the reason code.
    """

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args)
        self._pools: dict[bool, ProcessPoolExecutor] = {}
        self.lost: dict[str, str] = {}
        self._watchdog = Watchdog()
        self._nodes: dict[int, Any] = {}
        self._tried: set[int] = set()
        self._again: deque[int] = deque()
        self._alone: Future[dict[str, Any]] | None = None
        self._workers: dict[int, Any] = {}

    def end(self) -> None:
        """End all workers at once, those of broken pools too, for which Python would wait.

        Each removes its own half-written files.
        """
        self._list_workers()
        workers = list(self._workers.values())
        for worker in workers:
            worker.terminate()
        limit = time.monotonic() + SECONDS_TO_END
        for worker in workers:
            worker.join(max(limit - time.monotonic(), 0))
            worker.kill()
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)

    def _open(self, on_gpu: bool) -> ProcessPoolExecutor:
        if on_gpu not in self._pools:
            self._pools[on_gpu] = ProcessPoolExecutor(
                max_workers=1 if on_gpu else self.processors,
                mp_context=get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._cwd,),
            )
        return self._pools[on_gpu]

    def _list_workers(self) -> list[int]:
        """Return the process ids of pools that work, and remember all there ever were."""
        working = {
            pid: worker
            for pool in self._pools.values()
            for pid, worker in (pool._processes or {}).items()
        }
        self._workers |= working
        return list(working)

    def _submit_job(self, node: Any, **_: bool) -> int:
        self._taskid += 1
        self._nodes[self._taskid] = node
        self._submit(self._taskid)
        return int(self._taskid)

    def _submit(self, task: int) -> None:
        node = self._nodes[task]
        step, on_gpu = partial(run_node, node, False, task), node.is_gpu_node()
        try:
            future = self._open(on_gpu).submit(step)
        except BrokenProcessPool:
            del self._pools[on_gpu]
            future = self._open(on_gpu).submit(step)
        self._task_obj[task] = future
        self._watchdog.expect()
        future.add_done_callback(partial(self._collect, task))

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self._nodes[taskid]

    def _collect(self, task: int, future: Future[dict[str, Any]]) -> None:
        if future.cancelled():
            return
        if (error := future.exception()) is None:
            self._taskresult[task] = future.result()
        elif isinstance(error, BrokenProcessPool) and task not in self._tried:
            self._tried.add(task)
            self._again.append(task)
        else:
            lines = traceback.format_exception(error)
            self._taskresult[task] = {"result": None, "traceback": lines, "taskid": task}
            name = getattr(self._nodes[task], "run_name", None)
            if name is not None and isinstance(error, BrokenProcessPool):
                self.lost[name] = "timeout" if self._watchdog.barked else "worker-killed"

    def _send_procs_to_workers(self, updatehash: bool = False, graph: Any = None) -> None:
        running = sum(not future.done() for future in self._task_obj.values())
        self._watchdog.look(running, self._list_workers())
        super()._send_procs_to_workers(updatehash, graph)
        if self._again and not running:
            task = self._again.popleft()
            LOGGER.warning("a process was lost; once more, alone: %s", self._nodes[task].name)
            self._submit(task)
            self._alone = self._task_obj[task]

    def _postrun_check(self) -> None:
        for pool in self._pools.values():
            pool.shutdown()

    def _sort_jobs(self, jobids: Iterable[int], **_: str) -> list[int]:
        if self._again or (self._alone is not None and not self._alone.done()):
            return []  # What was lost has its second turn with nothing beside it.
        return sorted(jobids, key=lambda job: (-self.procs[job].depth, job))


def quieten_libraries() -> None:
    """Let Nipype and matplotlib be silent in a worker too: our own log says what happens."""
    for name in ("nipype", "nipype.workflow", "nipype.interface", "nipype.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _start_worker(folder: str) -> None:
    quieten_libraries()
    os.chdir(folder)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches every process of a terminal; only the parent decides, and then terminates us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)


def _leave(*_: object) -> NoReturn:
    """Leave by an exception, so that half-written files are removed; at last, without.

    Nipype swallows all exceptions of a step, this one too, and the process would wait for the next.
    """
    end = threading.Timer(SECONDS_TO_END / 2, os._exit, (1,))
    end.daemon = True
    end.start()
    sys.exit(1)


def _end_with_parent() -> None:
    """End this process when its parent is gone: an idle one would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(SECONDS_TO_END)
        os._exit(1)
