"""Kinds of faults: how many of each, what puts one into a case, and what may come of it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from campaign.calls import EMBED, Command
from campaign.case import Case
from slimbrain_app.errors import REASONS


@dataclass(frozen=True, slots=True)
class Expected:
    """The reasons that a call may give, and the exit codes that it may end with."""

    reasons: frozenset[str]
    exits: frozenset[int]


def expect(*reasons: str) -> Expected:
    """Return what a call may end with: any of ``reasons``, ``done``, or ``killed``."""
    others = {"done": 0, "killed": -signal.SIGKILL}
    exits = {others[one] if one in others else int(REASONS[one].exit_code) for one in reasons}
    return Expected(frozenset(reasons), frozenset(exits))


Inject = Callable[[Case], Expected]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault: how many are tried, and what puts one into a case.

    ``processes`` is what the call may have of them, to draw from; ``alone`` while no other fault is
    tried, ``root`` only by root.
    """

    name: str
    faults: int
    inject: Inject
    command: Command = EMBED
    processes: tuple[int, ...] = (1,)
    alone: bool = False
    root: bool = False

    @property
    def meaning(self) -> str:
        """What happens, for the table."""
        return (self.inject.__doc__ or "").strip().splitlines()[0].rstrip(".")

    def strike(self, case: Case) -> Expected:
        """Put a fault into a case, and start the call unless that is a part of it."""
        several = len(self.processes) > 1
        case.processes = case.draw.choice(self.processes) if several else self.processes[0]
        expected = self.inject(case)
        if not case.calls:
            case.start()
        return expected


KINDS: dict[str, Kind] = {}


def kind(
    name: str, faults: int, command: Command = EMBED, **options: Any
) -> Callable[[Inject], Inject]:
    """Enter what a function does to a case as a kind of faults; its docstring tells what."""

    def enter(inject: Inject) -> Inject:
        KINDS[name] = Kind(name, faults, inject, command, **options)
        return inject

    return enter


def draw_evenly(case: Case, least: int, most: int) -> int:
    """Draw a number, small ones as often as large ones."""
    return int(least * (most / least) ** case.draw.random())
