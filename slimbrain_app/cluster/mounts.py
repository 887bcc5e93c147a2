"""What is mounted where: Linux's own table, as a process sees it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Where images and engines mount things of their own.
_THEIRS = ("/proc", "/sys", "/dev", "/etc", "/run", "/usr", "/.singularity.d")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system, or a part of one; unknown where Linux isn't.

    Attributes
    ----------
    kind : str
    options : frozenset of str
    place : Path
    origin : str
        The part's path within its file system; of a whole one what holds it.
    """

    kind: str = ""
    options: frozenset[str] = frozenset()
    place: Path = Path("/")
    origin: str = ""

    def __str__(self) -> str:
        words = (self.kind, "read-only" if "ro" in self.options else "")
        return ", ".join(word for word in words if word) or "file system unknown"


def find_mount(folder: Path, table: Path = MOUNTS) -> Mount:
    """Return on which file system a folder is, or will be."""
    place, found = find_place(folder).resolve(), Mount()
    for mount in _read_mounts(table):
        # Of several on one another the last is seen.
        above = len(mount.place.parts) >= len(found.place.parts)
        if place.is_relative_to(mount.place) and above:
            found = mount
    return found


def find_place(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that is there."""
    above = (folder, *folder.absolute().parents)
    return next(place for place in above if os.access(place, os.F_OK))


def tell_mounts(table: Path = MOUNTS) -> str:
    """Say in one line which folders of the host a container sees."""
    seen = [_tell(mount) for mount in _read_mounts(table) if _is_of_host(mount)]
    return f"mounted here: {', '.join(seen) or 'nothing of the host'}"


def _tell(mount: Mount) -> str:
    told = f"{mount.place} from {mount.origin}"
    told = told if told.isprintable() else ascii(told)
    return f"{told} (read-only)" if "ro" in mount.options else told


def _is_of_host(mount: Mount) -> bool:
    theirs = mount.place == Path("/") or any(map(mount.place.is_relative_to, _THEIRS))
    return not theirs and mount.kind not in ("tmpfs", "ramfs")


def _read_mounts(table: Path) -> Iterator[Mount]:
    if not table.exists():
        return
    for line in table.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        root, point, options = before.split()[3:6]
        kind, source, more = after.split(maxsplit=2)
        yield Mount(
            kind,
            frozenset(f"{options},{more}".split(",")),
            Path(_decode(point)),
            _decode(source if root == "/" else root),
        )


def _decode(text: str) -> str:
    """Return a path whose blanks and the like are written in octal."""
    return re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), text)
