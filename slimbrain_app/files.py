"""Writing so that nobody ever sees half a file: temporary names, renames, locks, checksums."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from slimbrain_app.errors import CallRefused, RunRefused
from slimbrain_app.locks import held

TEMPORARY = ".slimbrain-"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG),
    # A file stands where a folder is needed, or the other way round.
    *(errno.ENOTDIR, errno.EEXIST, errno.EISDIR),
)
# Of Lustre mounted without them, of NFS without its lock daemon, of what stands on FUSE.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP)


def check_empty(folder: Path) -> None:
    """Refuse a folder that holds anything.

    Raises
    ------
    CallRefused
        ``usage``.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    raise CallRefused(
        "usage",
        file=folder,
        expected="a new or empty folder",
        found="something there already",
        advice="name another folder; nothing is overwritten",
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a hidden name beside ``path`` to write to; it takes the place of ``path`` at the end.

    Nothing is left behind if the block raises. The data are on disk before the rename.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    temporary = _beside(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Like `whole_file` for a folder, which is there, empty, when the block starts.

    A folder that already stands at ``path`` is replaced.
    """
    temporary = _beside(path)
    with writing(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for file in temporary.iterdir():
                _flush(file)
            if path.exists():
                old = _beside(path)
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_line(path: Path, line: str) -> None:
    """Add a line to the end of a text file; a killed process may leave a part of it.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, whole or not at all. NaN is refused: it isn't JSON."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def parse_json(content: str | bytes) -> Any:
    """Return what JSON holds.

    Raises
    ------
    ValueError
        Whatever is wrong with it.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deeply") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def lock(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the kernel's lock on ``path`` while the block runs; it dies with the process.

    Where the file system has no locks, `slimbrain_app.locks.held` stands for them.

    Raises
    ------
    RunRefused
        ``locked`` if another process holds it, and it isn't to be waited for.
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    with ExitStack() as stack:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(path.open("a"))
            if not _lock(stream, path, what, wait=wait):
                stack.enter_context(held(path, what, wait=wait))
        yield


def _lock(stream: TextIO, path: Path, what: str, *, wait: bool) -> bool:
    """Take the kernel's lock, and return whether there is such a thing."""
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise RunRefused(
            "locked",
            file=what,
            expected="to be the only process at work on it",
            found="another one",
            advice="wait for it, then start again",
        ) from error
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise CallRefused(
            "not-writable",
            file=path,
            expected="to lock it",
            found=error.strerror or str(error),
            advice="name an output folder on another file system",
        ) from error
    return True


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove what killed processes left in ``folder``, of files called ``name`` if it is given.

    Only for the holder of the lock on what is written there.

    Raises
    ------
    CallRefused
        ``not-writable``
    """
    if not folder.is_dir():
        return
    for leftover in folder.glob(f"{TEMPORARY}*{name}"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with writing(leftover):
                leftover.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    # The ending stays last: nibabel and numpy choose a format by it.
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write at or below ``path`` into ours.

    Raises
    ------
    CallRefused
        ``not-writable`` or ``disk-full``.
    """
    try:
        yield
    except OSError as error:
        # numpy writes on its own, and gives no number.
        full = error.errno in _FULL or (error.errno is None and "requested and" in str(error))
        # Of a folder that was removed meanwhile, or one of /proc, where none can be made.
        gone = error.errno == errno.ENOENT and not path.parent.exists()
        if not full and not ((gone or error.errno in _DENIED) and _concerns(error, path)):
            raise
        raise CallRefused(
            "disk-full" if full else "not-writable",
            file=path,
            expected="to write here",
            found=error.strerror or str(error),
            advice="free some space" if full else "check owner, mode and mount of the folder",
        ) from error


def _concerns(error: OSError, path: Path) -> bool:
    """Whether an error is about ``path`` or the way to it, and not about an input."""
    if error.filename is None:
        return True
    place = Path(os.fsdecode(error.filename))
    return place.is_relative_to(path.parent) or path.is_relative_to(place)


def cached_packages() -> Path:
    """Return the folder with the packages that were fetched from a hub."""
    from platformdirs import user_cache_path

    return user_cache_path("slimbrain") / "models"
