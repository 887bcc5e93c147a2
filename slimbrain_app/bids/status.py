"""Status files: every run that was found, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbrain_app.bids.dataset import lock_shared
from slimbrain_app.errors import REASONS, RunRefused
from slimbrain_app.files import parse_json, write_json, write_text
from slimbrain_app.records import RunStatus

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def write_status(output: Path, participant: str, statuses: Sequence[RunStatus]) -> None:
    """Write ``logs/sub-<label>_status.json``."""
    runs = [_describe(status) for status in sorted(statuses, key=lambda status: status.run)]
    write_json(_place(output, participant), {"participant_id": f"sub-{participant}", "runs": runs})


def read_status(output: Path, participant: str) -> tuple[RunStatus, ...]:
    """Return what `write_status` wrote, or nothing if it is absent or not understood."""
    try:
        return load_status(output, participant)
    except RunRefused:
        return ()


def load_status(output: Path, participant: str) -> tuple[RunStatus, ...]:
    """Return what `write_status` wrote.

    Raises
    ------
    RunRefused
        ``output-bad`` if it is absent or not understood.
    """
    place = _place(output, participant)
    try:
        content = parse_json(place.read_text(encoding="utf-8"))
        return tuple(_restore(run) for run in content["runs"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunRefused(
            "output-bad",
            file=place.relative_to(output).as_posix(),
            expected="how the participant's runs have ended",
            found=describe_fault(error),
            advice="start the participant level again for this participant",
        ) from error


def describe_fault(error: Exception) -> str:
    """Return in words why a JSON or table of ours can't be read."""
    if isinstance(error, OSError):
        return error.strerror or "a file that can't be read"
    if isinstance(error, KeyError):
        return f"nothing under {error}"
    return str(error)


def list_told(output: Path) -> tuple[str, ...]:
    """List the participants that have a status file, sorted."""
    return tuple(sorted(file.name[4:-12] for file in (output / "logs").glob("sub-*_status.json")))


def has_status(output: Path, participant: str) -> bool:
    return _place(output, participant).exists()


def remove_status(output: Path, participant: str) -> None:
    """Forget how an earlier call ended, so that what stands there afterwards is new."""
    _place(output, participant).unlink(missing_ok=True)


def join_status(output: Path) -> None:
    """Write ``logs/status.json``, the union of the participants' files that can be read."""
    texts = []
    for label in list_told(output):
        # A damaged one is told of where its participant's runs are.
        with suppress(OSError, ValueError):
            text = _place(output, label).read_text(encoding="utf-8")
            parse_json(text)
            texts.append(text.strip())
    # They are indented as they are: to encode thousands of people anew would take seconds.
    with lock_shared(output):
        write_text(output / "logs" / "status.json", "[\n" + ",\n".join(texts) + "\n]\n")


def _place(output: Path, participant: str) -> Path:
    return Path(f"{output}/logs/sub-{participant}_status.json")


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
    """Return a status, its parts checked: nobody knows what became of the file."""
    status: RunStatus = _checker().validate_python(
        {
            "run": run["run"],
            "state": run["state"],
            "refusal": run["refusal"],
            "notices": run["warnings"],
            "spent": list(run["seconds"].items()),
            "peak_mib": run["peak_mib"],
            "outputs": run["outputs"],
        }
    )
    if status.refusal and status.refusal.code not in REASONS:
        raise ValueError(f"no reason {status.refusal.code}")
    return status


@cache
def _checker() -> TypeAdapter[RunStatus]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunStatus)
