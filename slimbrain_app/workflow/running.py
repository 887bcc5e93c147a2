"""Running a graph: its log, its work folder, the pool, and the runs that it lost."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from slimbrain_app.bids.dataset import lock_shared
from slimbrain_app.errors import REASONS, CallRefused, Scope
from slimbrain_app.files import whole_folder, writing
from slimbrain_app.records import Refusal, Run
from slimbrain_app.settings import AnySettings, write_settings
from slimbrain_app.training.stopping import SIGNALS
from slimbrain_app.workflow.resources import Limits
from slimbrain_app.workflow.state import Call, RunState
from slimbrain_app.workflow.watchdog import PATIENCE_SECONDS

LOGGER = logging.getLogger("slimbrain")
# Nipype's default of 2 s makes a graph of short nodes wait most of its time.
POLL_SECONDS = 0.05


class _Log(logging.FileHandler):
    """A log that costs no call its end: where the disk is full, a step will say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


@contextmanager
def open_logs(output: Path, settings: AnySettings, command: Sequence[str]) -> Iterator[Path]:
    """Yield the folder of this call below ``logs/``, with what it starts from and its log."""
    logs = output / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"
    with lock_shared(output), whole_folder(logs) as folder:
        (folder / "slimbrain.toml").write_text(write_settings(settings), encoding="utf-8")
        (folder / "command.txt").write_text(shlex.join(command) + "\n", encoding="utf-8")
    handler = _Log(logs / "slimbrain.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    try:
        yield logs
    finally:
        LOGGER.removeHandler(handler)
        with suppress(OSError):
            handler.close()


@contextmanager
def work_folder(work_dir: Path | None, logs: Path) -> Iterator[Path]:
    """Yield a folder of this call's own; it stays only if one of our faults left a crash file."""
    if work_dir:
        with writing(work_dir / "slimbrain"):
            work_dir.mkdir(parents=True, exist_ok=True)
    try:
        folder = Path(tempfile.mkdtemp(prefix="slimbrain_", dir=work_dir))
    except OSError as error:
        raise CallRefused(
            "not-writable",
            file=work_dir,
            expected="a place for intermediate files",
            found=error.strerror or str(error),
            advice="name a folder that can be written to with --work-dir",
        ) from error
    try:
        yield folder
    finally:
        if any(logs.glob("crash-*")):
            LOGGER.warning("the work folder is kept for inspection: %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def run_graph(
    build: Callable[[], Any], call: Call, limits: Limits, ended: Callable[[Any], None]
) -> Mapping[str, str]:
    """Run all nodes that can be run, and hand on those of runs when they have ended.

    Parameters
    ----------
    build : callable
        Lays the graph, once Nipype is configured.
    call : Call
    limits : Limits
    ended : callable
        Takes a node with ``run_name`` and ``verb``.

    Returns
    -------
    mapping
        Of names of runs that lost their process, to the reason code.

    Raises
    ------
    CallRefused
        What a step met that no other run can escape, such as a full disk.
    """
    _configure_nipype(call)
    from slimbrain_app.workflow.pool import Pool

    graph = build()

    stops: list[int] = []

    def follow(node: Any, event: str) -> None:
        if stops:
            raise KeyboardInterrupt
        if event == "end" and hasattr(node, "run_name") and (state := _find_state(node)):
            LOGGER.info("%s %s", node.verb, node.run_name)
            if state.refusal and REASONS[state.refusal.code].scope is Scope.CALL:
                raise state.refusal.restore()
            ended(node)
        if call.stops_here:
            raise RuntimeError("stopped on the first crash")

    plugin: Any = "Linear"
    pool = None
    if limits.processes > 1:
        plugin = pool = Pool(
            {
                "status_callback": follow,
                "n_procs": limits.processes,
                "memory_gb": limits.memory_gb,
                "n_gpu_procs": 1,
                "raise_insufficient": False,
            }
        )
    try:
        with writing(call.work), _note_stops(stops):
            graph.run(plugin=plugin, plugin_args={"status_callback": follow})
    except RuntimeError as error:  # Who is missing, the caller finds out.
        _refuse_work(error, call.work)
        LOGGER.error("the graph did not reach its end: %s", error)
    finally:
        if pool is not None:
            pool.end()
    return {} if pool is None else pool.lost


@contextmanager
def _note_stops(stops: list[int]) -> Iterator[None]:
    """Note the signals to stop that come while the block runs; each interrupts it.

    Nipype takes a step that was interrupted for one with a fault, and goes on.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def note(number: int, frame: FrameType | None) -> None:
        stops.append(number)
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)
        raise KeyboardInterrupt

    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield
    finally:
        if not stops:
            for number, handler in before.items():
                signal.signal(number, handler)


def _find_state(node: Any) -> RunState | None:
    """Return a run's state after a step; None of one that was left out, which ends for Nipype."""
    try:
        state: RunState = node.result.outputs.state
    except FileNotFoundError:
        return None
    return state


def _refuse_work(error: RuntimeError, work: Path) -> None:
    """Refuse the call if Nipype, which tells of errors in words, could not write its own files."""
    if os.strerror(errno.ENOSPC) in f"{error} {error.__cause__}":
        with writing(work):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not work.is_dir():
        raise CallRefused(
            "not-writable",
            file=work,
            expected="the work folder to stay until the call ends",
            found="that it was removed",
            advice="start again, with --work-dir at a place that nobody clears up",
        )


def _configure_nipype(call: Call) -> None:
    from nipype import config

    from slimbrain_app.workflow.pool import quieten_libraries

    quieten_libraries()
    config.update_config(
        {
            "execution": {
                "poll_sleep_duration": str(POLL_SECONDS),
                "crashdump_dir": str(call.work),
                "crashfile_format": "txt",
                "stop_on_first_crash": "false",
                "check_version": "false",
                "create_report": "false",
                "remove_unnecessary_outputs": "false",
            }
        }
    )


def refuse_lost(run: Run, call: Call, lost: Mapping[str, str]) -> Refusal:
    """Return why a run has no end: its process was lost, or the call stopped before its turn."""
    code = "stopped" if call.stops_here else lost.get(run.name, "internal")
    found, advice = {
        "stopped": ("a crash before its turn", "leave out --stop-on-first-crash"),
        "internal": ("no end of it", f"send us {call.logs.relative_to(call.output)}"),
        "timeout": (
            f"that it did nothing for {PATIENCE_SECONDS / 60:.0f} min, twice, and was ended",
            "check that the file servers answer, then start again",
        ),
        "worker-killed": (
            f"that it was killed twice, the second time alone in {call.memory_gb:.1f} GB, for want "
            "of memory most likely",
            "start again with more memory, or look into the system's log for another reason",
        ),
    }[code]
    return Refusal(
        run=run.name,
        code="internal" if code == "stopped" else code,
        file=run.relative(run.bold),
        expected="its process to live to the end",
        found=found,
        advice=advice,
    )
