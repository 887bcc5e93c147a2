"""A participant's folders: what is listed, and what never is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from slimbrain_app.bids.entities import Name, parse_name
from slimbrain_app.bids.metadata import relative

VOLUMES = (".nii", ".nii.gz")


@dataclass(frozen=True, slots=True)
class File:
    """A file of a participant, known by name only."""

    place: str
    name: Name

    @property
    def path(self) -> Path:
        # Made when asked for: of most files nothing but the name is ever looked at.
        return Path(self.place)

    @property
    def is_volume(self) -> bool:
        return self.name.extension in VOLUMES


@dataclass(frozen=True)
class Participant:
    """A participant's folder. Each folder below is listed once, and only when it is needed.

    Only ``func`` and ``anat`` are entered, of the participant and of their sessions: never
    ``figures``, ``log``, ``sourcedata``, ``work`` or what else lies beside them.
    """

    dataset: Path
    label: str

    @property
    def folder(self) -> Path:
        return self.dataset / f"sub-{self.label}"

    @cached_property
    def sessions(self) -> tuple[str, ...]:
        """Labels of the sessions, sorted."""
        with os.scandir(self.folder) as entries:
            folders = [entry.name for entry in entries if _is_session(entry)]
        return tuple(sorted(name.removeprefix("ses-") for name in folders))

    @cached_property
    def anatomy(self) -> dict[str | None, tuple[File, ...]]:
        """Files of ``anat`` by session; None for those that hold for all sessions."""
        return {session: self.list_files("anat", session) for session in (None, *self.sessions)}

    def list_files(self, kind: str, session: str | None) -> tuple[File, ...]:
        """List ``func`` or ``anat``; nothing where there is no such folder."""
        above = self.folder if session is None else self.folder / f"ses-{session}"
        return tuple(sorted(_list_folder(above / kind), key=lambda file: file.place))

    def find_anatomical(
        self, fits: Callable[[Name], bool], session: str | None
    ) -> tuple[File, ...]:
        """Find files of ``anat`` for a run: in its session, for all sessions, in the others.

        Files of more than one other session are for the caller to judge.
        """
        for place in (session, None):
            found = tuple(file for file in self.anatomy.get(place, ()) if fits(file.name))
            if found:
                return found
        return tuple(file for files in self.anatomy.values() for file in files if fits(file.name))

    def show(self, path: Path) -> str:
        """Return what messages call a file: its path below the dataset."""
        return relative(path, self.dataset)


def _is_session(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith("ses-") and entry.is_dir()


def _list_folder(folder: Path) -> Iterator[File]:
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            name = parse_name(entry.name)
            if name is not None:
                yield File(entry.path, name)
