"""Prepared runs that stand in an output folder of SlimBrain's, beside what was made of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slimbrain_app.bids.derivatives import list_participants
from slimbrain_app.bids.entities import VARIANT, Name, parse_name
from slimbrain_app.bids.filters import Filter, build_filter
from slimbrain_app.bids.folders import Participant
from slimbrain_app.settings import Select


@dataclass(frozen=True, slots=True)
class PreparedFolder:
    """Where a prepared run lies; ``run`` is its name without space and description."""

    participant: str
    run: str
    folder: Path


def list_prepared(dataset: Path, select: Select) -> tuple[PreparedFolder, ...]:
    """List the selected prepared runs, sorted; labels that aren't there count for nothing."""
    wanted = build_filter(select)
    labels = set(select.participants)
    return tuple(
        prepared
        for label in list_participants(dataset)
        if not labels or label in labels
        for prepared in _list_own(Participant(dataset, label), wanted)
    )


def _list_own(participant: Participant, wanted: Filter) -> Iterator[PreparedFolder]:
    for session in (None, *participant.sessions):
        above = participant.folder if session is None else participant.folder / f"ses-{session}"
        for folder in _list_folders(above / "func"):
            name = parse_name(f"{folder.name}.folder")
            if name and name.suffix == "prepared" and name.get("desc") == "slimbrain":
                entities = name.without(VARIANT)
                if wanted.admits_run(Name(entities, "bold", "")):
                    run = "_".join(f"{key}-{value}" for key, value in entities)
                    yield PreparedFolder(participant.label, run, folder)


def _list_folders(folder: Path) -> list[Path]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    with entries:
        return sorted(folder / entry.name for entry in entries if entry.is_dir())
