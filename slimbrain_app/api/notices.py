"""What a report shows as a warning, in Python's way."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable

from slimbrain_app.model.packages import Package
from slimbrain_app.records import Notice

Told = tuple[str, Notice]


class SlimBrainWarning(UserWarning):
    """What the participant level writes beside a run as a warning, with its code."""


def warn_of_runs(told: Iterable[Told]) -> None:
    """Warn the caller's caller once of each code, with the first case, a label and a notice."""
    cases: dict[str, list[Told]] = defaultdict(list)
    for label, notice in told:
        cases[notice.code].append((label, notice))
    for code, ((label, notice), *others) in cases.items():
        more = f" (and {len(others)} more)" if others else ""
        message = f"[{code}] {label}: {notice.message}{more}"
        warnings.warn(message, SlimBrainWarning, stacklevel=3)


def warn_of_package(package: Package) -> None:
    """Warn the caller's caller of random weights, and of what its makers say of a package."""
    if not package.trained:
        message = f"the package {package.name} is untrained: its embeddings mean nothing"
        warnings.warn(message, SlimBrainWarning, stacklevel=3)
    for notice in package.identity.notices:
        message = f"[{notice.code}] {package.name}: {notice.message}"
        warnings.warn(message, SlimBrainWarning, stacklevel=3)
