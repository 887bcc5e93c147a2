"""Status files: every run that was found, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimbrain_app.files import write_json
from slimbrain_app.records import Notice, Refusal, RunStatus


def write_status(output: Path, participant: str, statuses: Sequence[RunStatus]) -> None:
    """Write ``logs/sub-<label>_status.json``."""
    runs = [_describe(status) for status in sorted(statuses, key=lambda status: status.run)]
    write_json(_place(output, participant), {"participant_id": f"sub-{participant}", "runs": runs})


def read_status(output: Path, participant: str) -> tuple[RunStatus, ...]:
    """Return what `write_status` wrote, or nothing if it is absent or not understood."""
    try:
        content = json.loads(_place(output, participant).read_text(encoding="utf-8"))
        return tuple(_restore(run) for run in content["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def has_status(output: Path, participant: str) -> bool:
    return _place(output, participant).exists()


def remove_status(output: Path, participant: str) -> None:
    """Forget how an earlier call ended, so that what stands there afterwards is new."""
    _place(output, participant).unlink(missing_ok=True)


def join_status(output: Path) -> None:
    """Write ``logs/status.json``, the union of the participants' files."""
    files = sorted((output / "logs").glob("sub-*_status.json"))
    content = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    write_json(output / "logs" / "status.json", content)


def _place(output: Path, participant: str) -> Path:
    return output / "logs" / f"sub-{participant}_status.json"


def _describe(status: RunStatus) -> dict[str, Any]:
    refusal = status.refusal
    return {
        "run": status.run,
        "state": status.state,
        "reason": refusal.code if refusal else None,
        "message": refusal.message if refusal else None,
        "refusal": asdict(refusal) if refusal else None,
        "warnings": [asdict(notice) for notice in status.notices],
        "seconds": {step: round(seconds, 3) for step, seconds in status.spent},
        "peak_mib": round(status.peak_mib),
        "outputs": list(status.outputs),
    }


def _restore(run: Mapping[str, Any]) -> RunStatus:
    return RunStatus(
        run=run["run"],
        state=run["state"],
        refusal=Refusal(**run["refusal"]) if run["refusal"] else None,
        notices=tuple(Notice(**notice) for notice in run["warnings"]),
        spent=tuple(run["seconds"].items()),
        peak_mib=run["peak_mib"],
        outputs=tuple(run["outputs"]),
    )
