"""Status files: every run that was found, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slimbrain_app.files import write_json
from slimbrain_app.records import RunStatus


def write_status(output: Path, participant: str, statuses: Sequence[RunStatus]) -> None:
    """Write ``logs/sub-<label>_status.json``."""
    content = {"participant_id": f"sub-{participant}", "runs": [_describe(s) for s in statuses]}
    write_json(output / "logs" / f"sub-{participant}_status.json", content)


def join_status(output: Path) -> None:
    """Write ``logs/status.json``, the union of the participants' files."""
    files = sorted((output / "logs").glob("sub-*_status.json"))
    content = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    write_json(output / "logs" / "status.json", content)


def _describe(status: RunStatus) -> dict[str, Any]:
    refusal = status.refusal
    return {
        "run": status.run,
        "state": status.state,
        "reason": refusal.code if refusal else None,
        "message": refusal.message if refusal else None,
        "warnings": [asdict(notice) for notice in status.notices],
        "seconds": round(status.seconds, 2),
        "peak_mib": round(status.peak_mib),
        "outputs": list(status.outputs),
    }
