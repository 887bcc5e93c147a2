"""Running a graph: its log, its work folder, the pool, and the runs that it lost."""

from __future__ import annotations

import logging
import shlex
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from slimbrain_app.files import write_text
from slimbrain_app.records import Refusal, Run
from slimbrain_app.settings import AnySettings, write_settings
from slimbrain_app.workflow.resources import Limits
from slimbrain_app.workflow.state import Call

LOGGER = logging.getLogger("slimbrain")
# Nipype's default of 2 s makes a graph of short nodes wait most of its time.
POLL_SECONDS = 0.05


@contextmanager
def open_logs(output: Path, settings: AnySettings, command: Sequence[str]) -> Iterator[Path]:
    """Yield the folder of this call below ``logs/``, with what it starts from and its log."""
    logs = output / "logs" / f"{datetime.now():%Y%m%d-%H%M%S}_{uuid.uuid4().hex[:8]}"
    write_text(logs / "slimbrain.toml", write_settings(settings))
    write_text(logs / "command.txt", shlex.join(command) + "\n")
    handler = logging.FileHandler(logs / "slimbrain.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    try:
        yield logs
    finally:
        LOGGER.removeHandler(handler)
        handler.close()


@contextmanager
def work_folder(work_dir: Path | None, logs: Path) -> Iterator[Path]:
    """Yield a folder of this call's own; it stays only if one of our faults left a crash file."""
    if work_dir:
        work_dir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="slimbrain_", dir=work_dir))
    try:
        yield folder
    finally:
        if any(logs.glob("crash-*")):
            LOGGER.warning("the work folder is kept for inspection: %s", folder)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def run_graph(
    build: Callable[[], Any], call: Call, limits: Limits, ended: Callable[[Any], None]
) -> None:
    """Run all nodes that can be run, and hand on those of runs when they have ended.

    Parameters
    ----------
    build : callable
        Lays the graph, once Nipype is configured.
    call : Call
    limits : Limits
    ended : callable
        Takes a node with ``run_name`` and ``verb``.
    """
    _configure_nipype(call)
    from slimbrain_app.workflow.pool import Pool

    graph = build()

    def follow(node: Any, event: str) -> None:
        if event == "end" and hasattr(node, "run_name"):
            LOGGER.info("%s %s", node.verb, node.run_name)
            ended(node)
        if call.stops_here:
            raise RuntimeError("stopped on the first crash")

    plugin: Any = "Linear"
    if limits.processes > 1:
        plugin = Pool(
            {
                "status_callback": follow,
                "n_procs": limits.processes,
                "memory_gb": limits.memory_gb,
                "raise_insufficient": False,
            }
        )
    try:
        graph.run(plugin=plugin, plugin_args={"status_callback": follow})
    except RuntimeError as error:  # Who is missing, the caller finds out.
        LOGGER.error("the graph did not reach its end: %s", error)
    finally:
        if limits.processes > 1:
            plugin.end()


def _configure_nipype(call: Call) -> None:
    from nipype import config

    from slimbrain_app.workflow.pool import quieten_nipype

    quieten_nipype()
    config.update_config(
        {
            "execution": {
                "poll_sleep_duration": str(POLL_SECONDS),
                "crashdump_dir": str(call.work),
                "crashfile_format": "txt",
                "stop_on_first_crash": "false",
                "check_version": "false",
                "remove_unnecessary_outputs": "false",
            }
        }
    )


def refuse_lost(run: Run, call: Call) -> Refusal:
    """Return why a run has no end: its process was lost, or the call stopped before its turn."""
    stopped = call.stops_here
    return Refusal(
        run=run.name,
        code="internal" if stopped else "worker-killed",
        file=run.relative(run.bold),
        expected="its process to live to the end",
        found="a crash before its turn"
        if stopped
        else "that it was killed, for want of memory most likely",
        advice="leave out --stop-on-first-crash"
        if stopped
        else "start again with a lower --nprocs, or with more memory",
    )
