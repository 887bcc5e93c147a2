"""Locks for file systems that have none: a folder that one alone can put in place, and heart-beats.

They lie in ``held``, beside the lock's file::

    TOKEN.beat             a process that holds or wants a lock; it writes this anew every 30 s
    sub-01.lock/TOKEN.0    the lock, held by the process of that token

A lock's folder is made under another name, with the file in it, and renamed into place. Nothing is
renamed onto a folder that holds something: of several that try, one wins.

A process whose beat is gone is dead for good, since no token comes twice. So any number may declare
it dead at once, by removing its beat; and what it held is removed by its token, a name that no
later holder has: who comes late removes nothing. The name that all share is never removed with
anything in it. What stood still for the whole silence learns at its next beat that it has lost.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import platform
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from slimbrain_app.errors import RunRefused

LOGGER = logging.getLogger("slimbrain")
# Below the folder of the lock's file.
HELD = "held"
BEAT_SECONDS = 30.0
SILENCE_SECONDS = 600.0
_BEAT = ".beat"
# In s, before another look at a lock that is waited for: the first and the longest.
_PAUSES = (0.05, 1.0)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a process tells by its beat.

    Attributes
    ----------
    host : str
    process : str
        Its id, on that host.
    node : str
        Equal only where process ids mean the same; empty if unknown.
    stamp : float
        When it last beat, by the clock of the file system, in s.
    """

    host: str
    process: str
    node: str
    stamp: float

    @property
    def is_over(self) -> bool:
        """Whether its process has certainly ended; of other nodes that is never said."""
        if not self.node or self.node != _name_node():
            return False
        try:
            os.kill(int(self.process), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # It lives, as another user's.
        return False


@contextmanager
def held(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold what stands for the kernel's lock on ``path`` while the block runs.

    If another process takes the lock over, which it does after `SILENCE_SECONDS` at the earliest,
    this one sends itself SIGTERM, if it has a handler for it.

    Raises
    ------
    RunRefused
        ``locked`` if another process holds it, and it isn't to be waited for; or if it was lost.
    OSError
        As of the file system.
    """
    holder = _join(path.parent / HELD)
    place = holder.folder / path.name / holder.name_entry()
    try:
        holder.take(place, what, wait=wait)
        yield
        if holder.is_lost:
            raise RunRefused(
                "locked",
                file=what,
                expected="to hold its lock to the end",
                found="it lost, after a silence of this process",
                advice="start again",
            )
    finally:
        if os.getpid() == holder.process:  # And not a child of it, by a fork.
            _clear(place)
            _leave(holder)


class Holder:
    """A process, as those see it that share a folder of locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = os.getpid()
        self.users = 0
        self._token = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, daemon=True)
        self._beaten = (0.0, 0.0)

    @property
    def is_lost(self) -> bool:
        """Whether others have declared this process dead."""
        return self._listen(self._token) is None

    def name_entry(self) -> str:
        """Return a name for a lock's file that was never given before."""
        return f"{self._token}.{next(self._numbers)}"

    def begin(self) -> None:
        """Begin to beat, and bury those who have been silent for long."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._find_beat(self._token).touch(exist_ok=False)
            self._beat()
            self._thread.start()
            self._bury(self._list_dead(self._list_silent()))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """Stop beating: whatever this process still holds is free."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError):  # Silence will tell, then.
            self._find_beat(self._token).unlink()

    def take(self, place: Path, what: str, *, wait: bool) -> None:
        """Put a lock's file in its place, at once or after a while.

        Raises
        ------
        RunRefused
            ``locked``
        """
        made = self.folder / f".{place.name}"
        pause, longest = _PAUSES
        try:
            made.mkdir()
            (made / place.name).touch()
            while not _put(made, place):
                tokens = {_read_token(name) for name in _list_names(place.parent)}
                dead = self._list_dead(tokens)
                if dead:
                    self._bury(dead)
                elif tokens and not wait:
                    raise self._refuse(what, min(tokens))
                else:
                    time.sleep(pause)
                    pause = min(2 * pause, longest)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except FileNotFoundError:
                self._lose()
                return
            except OSError as error:
                LOGGER.warning("no heart-beat in %s: %s", self.folder, error)

    def _beat(self) -> None:
        """Write, which file servers stamp by their own clock, as they don't if told of a time."""
        record = f"{platform.node()}\n{self.process}\n{_name_node()}\n"
        with self._find_beat(self._token).open("r+b") as stream:
            stream.write(record.encode())
            stream.flush()
            os.fsync(stream.fileno())
            self._beaten = os.fstat(stream.fileno()).st_mtime, time.monotonic()

    def _lose(self) -> None:
        LOGGER.error("the locks in %s were taken over, after a silence of this call", self.folder)
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(self.process, signal.SIGTERM)

    def _find_beat(self, token: str) -> Path:
        return self.folder / f"{token}{_BEAT}"

    def _listen(self, token: str) -> Pulse | None:
        """Return what a process tells; None of one that is dead."""
        try:
            # To open asks the file server, where a mere look may be answered from memory.
            with self._find_beat(token).open(encoding="utf-8", errors="replace") as stream:
                lines, stamp = stream.read().splitlines(), os.fstat(stream.fileno()).st_mtime
        except OSError as error:
            if error.errno not in _GONE:
                raise
            return None
        host, process, node = lines if len(lines) == 3 else ("an unknown host", "?", "")
        return Pulse(host, process, node, stamp)

    def _measure_silence(self, stamp: float) -> float:
        """Return the seconds since then, by the clock of the file system alone."""
        beaten, at = self._beaten
        return beaten + time.monotonic() - at - stamp

    def _list_silent(self) -> list[str]:
        silent = []
        for name in _list_names(self.folder):
            with suppress(FileNotFoundError):
                if name.endswith(_BEAT) and self._is_silent((self.folder / name).stat().st_mtime):
                    silent.append(name.removesuffix(_BEAT))
        return silent

    def _is_silent(self, stamp: float) -> bool:
        return self._measure_silence(stamp) > SILENCE_SECONDS

    def _list_dead(self, tokens: Collection[str]) -> set[str]:
        """Return which of some processes are dead, by their beat, their id, or their silence.

        Who seems silent may have been so with all others, by a file server that stood still, or
        only by the clock of a node: for the time of two beats it can show that it lives.
        """
        pulses = {token: self._listen(token) for token in tokens}
        dead = {token for token, pulse in pulses.items() if pulse is None or pulse.is_over}
        silent = {
            token: pulse
            for token, pulse in pulses.items()
            if token not in dead and pulse and self._is_silent(pulse.stamp)
        }
        if silent:
            time.sleep(2 * BEAT_SECONDS)
            dead |= {
                token for token, pulse in silent.items() if self._listen(token) in (pulse, None)
            }
        return dead

    def _bury(self, dead: Collection[str]) -> None:
        """Declare processes dead, and remove what they held."""
        for token in dead:
            self._find_beat(token).unlink(missing_ok=True)
        for folder in _list_names(self.folder) if dead else ():
            # A folder that is empty was left half made, or half removed.
            for name in _list_names(self.folder / folder) or (folder.removeprefix("."),):
                # In this order: what stands there had a beat before.
                if not self._find_beat(_read_token(name)).exists():
                    _clear(self.folder / folder / name)

    def _refuse(self, what: str, token: str) -> RunRefused:
        found, advice = "another one", "wait for it, then start again"
        if pulse := self._listen(token):
            silence = max(self._measure_silence(pulse.stamp), 0)
            free = datetime.now() + timedelta(seconds=SILENCE_SECONDS - silence)
            found = f"process {pulse.process} on {pulse.host}, last heard of {silence:.0f} s ago"
            advice += f"; if it was killed, from {free:%H:%M:%S} on"
        return RunRefused(
            "locked",
            file=what,
            expected="to be the only process at work on it",
            found=found,
            advice=advice,
        )


# One for each folder, whatever the number of locks: to beat for each of 10,000 people would be a
# burden. By process, too: a fork has the memory of another, but not its thread.
_HOLDERS: dict[tuple[int, Path], Holder] = {}
_GUARD = threading.Lock()


def _join(folder: Path) -> Holder:
    key = os.getpid(), folder
    with _GUARD:
        if key not in _HOLDERS:
            holder = Holder(folder)
            holder.begin()
            _HOLDERS[key] = holder
        _HOLDERS[key].users += 1
        return _HOLDERS[key]


def _leave(holder: Holder) -> None:
    with _GUARD:
        holder.users -= 1
        if not holder.users:
            del _HOLDERS[holder.process, holder.folder]
            holder.end()


def _put(made: Path, place: Path) -> bool:
    """Rename a folder into a lock's place, and return whether it is there."""
    with suppress(OSError):
        place.parent.rmdir()  # An empty one is nobody's; one that isn't empty stays.
    try:
        made.rename(place.parent)
    except OSError as error:
        # A file server may have done at the first try what it refuses at the second.
        if not place.exists() and error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
    return place.exists()


def _clear(place: Path) -> None:
    """Remove a lock's file and its folder, if nobody has put another there."""
    with suppress(OSError):  # Once its process has no beat any more, it counts for nothing.
        place.unlink(missing_ok=True)
        place.parent.rmdir()


def _list_names(folder: Path) -> list[str]:
    """Return what a folder holds; nothing of what is gone, or is a file."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return []


def _read_token(name: str) -> str:
    return name.partition(".")[0]


def _name_node() -> str:
    """Return what processes share whose ids mean the same: host, its boot, and their namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""  # This is no Linux.
