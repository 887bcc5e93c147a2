"""Which runs are wanted: labels from the command line and fMRIPrep's filter files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimbrain_app.bids.entities import VARIANT, Name, entity_keys, same_label
from slimbrain_app.errors import CallRefused
from slimbrain_app.files import parse_json
from slimbrain_app.records import Notice
from slimbrain_app.settings import Select

ABSENT: tuple[str, ...] = ()
PRESENT = "*"

# Not entities, but pybids treats them alike, and fMRIPrep's own filter files have them.
_PARTS_OF_NAME = ("suffix", "extension", "datatype")

_EXAMPLE = '{"bold": {"session": "1", "acquisition": ["a", "b"], "direction": null}}'


@dataclass(frozen=True, slots=True)
class Condition:
    """An entity's key and the values allowed."""

    key: str
    values: tuple[str, ...]

    @property
    def on_run(self) -> bool:
        return self.key not in VARIANT and self.key not in _PARTS_OF_NAME

    def admits(self, value: str | None) -> bool:
        if value is None or self.values == ABSENT:
            return value is None and self.values == ABSENT
        return PRESENT in self.values or any(
            same_label(self.key, value, allowed) for allowed in self.values
        )

    def admits_name(self, name: Name) -> bool:
        return self.admits(value_of(self.key, name))

    def __str__(self) -> str:
        return f"{self.key} {' or '.join(self.values) if self.values else 'absent'}"


@dataclass(frozen=True, slots=True)
class Filter:
    """Conditions that must all hold."""

    conditions: tuple[Condition, ...]

    def admits_run(self, name: Name) -> bool:
        """Judge what all files of a run share."""
        return all(condition.admits_name(name) for condition in self.conditions if condition.on_run)

    def admits_bold(self, name: Name) -> bool:
        """Judge what tells the BOLD files of a run apart, its space for one."""
        return all(
            condition.admits_name(name) for condition in self.conditions if not condition.on_run
        )

    def admits_session(self, session: str | None) -> bool:
        return all(
            condition.admits(session) for condition in self.conditions if condition.key == "ses"
        )

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(condition.key for condition in self.conditions))

    def allowed(self, key: str) -> tuple[str, ...] | None:
        """Return the values allowed for an entity; None where it is not filtered."""
        found = [condition.values for condition in self.conditions if condition.key == key]
        return found[0] if found else None


def build_filter(select: Select) -> Filter:
    """Translate the selection into conditions on names.

    Raises
    ------
    CallRefused
        ``usage``: a filter names no known entity.
    """
    labels = {"ses": select.sessions, "task": select.tasks, "run": select.runs}
    conditions = [Condition(key, values) for key, values in labels.items() if values]
    keys = _known_keys() if select.filters else {}
    for name, values in select.filters.items():
        conditions.append(Condition(_find_key(name, keys), tuple(values)))
    return Filter(tuple(conditions))


def value_of(key: str, name: Name) -> str | None:
    """Return an entity's value, or a part of the name; every file here is a functional one."""
    parts = {"suffix": name.suffix, "extension": name.extension, "datatype": "func"}
    return parts[key] if key in parts else name.get(key)


def read_filter_file(path: Path) -> tuple[dict[str, tuple[str, ...]], tuple[Notice, ...]]:
    """Read a ``--bids-filter-file`` as fMRIPrep takes it; only its ``bold`` block counts.

    Returns
    -------
    filters : dict
        As `Select.filters` wants them.
    notices : tuple of Notice
        One for each block that is not read.

    Raises
    ------
    CallRefused
        ``usage``: no JSON, another form, an unknown entity.
    """
    blocks = _read_blocks(path)
    bold = blocks.get("bold", {})
    if not isinstance(bold, dict):
        raise _bad_filter(path, "a block of entities", f'"bold": {json.dumps(bold)}')
    keys = _known_keys()
    filters = {name: _read_values(path, name, value) for name, value in bold.items()}
    for name in filters:
        _find_key(name, keys)
    notices = tuple(
        Notice(code="filter-ignored", message=f"the block {block!r} is not read", file=path.name)
        for block in blocks
        if block != "bold"
    )
    return filters, notices


def list_values(key: str, names: Iterable[Name]) -> str:
    """List the values an entity has among names, for messages."""
    values = {value_of(key, name) for name in names}
    return ", ".join(sorted(value if value is not None else "(none)" for value in values))


def _read_blocks(path: Path) -> Mapping[str, Any]:
    try:
        blocks = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _bad_filter(path, "a JSON object", str(error)) from error
    if not isinstance(blocks, dict):
        raise _bad_filter(path, "a JSON object", f"a {type(blocks).__name__}")
    return blocks


def _read_values(path: Path, name: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ABSENT
    values = value if isinstance(value, list) else [value]
    plain = all(isinstance(item, str | int) and not isinstance(item, bool) for item in values)
    if not values or not plain:
        expected = "a text, a whole number, a list of these, or null on its own"
        raise _bad_filter(path, expected, f'"{name}": {json.dumps(value)}')
    return tuple(str(item) for item in values)


def _known_keys() -> dict[str, str]:
    return {**entity_keys(), **{part: part for part in _PARTS_OF_NAME}}


def _find_key(name: str, keys: Mapping[str, str]) -> str:
    if name in keys:
        return keys[name]
    near = difflib.get_close_matches(name, keys, n=3, cutoff=0.4)
    raise CallRefused(
        "usage",
        file="filter",
        expected="names of BIDS entities",
        found=name,
        advice=f"try {' or '.join(near)}" if near else "see pybids' list of entities",
    )


def _bad_filter(path: Path, expected: str, found: str) -> CallRefused:
    return CallRefused(
        "usage",
        file=path,
        expected=expected,
        found=found,
        advice=f"write it as {_EXAMPLE}",
    )
