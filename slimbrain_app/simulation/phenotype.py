"""The table of people: whom a series belongs to, and what is known of each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("FILE_ID", "participant_id")
TIMES = ("TR", "RepetitionTime")
SITES = ("SITE_ID", "site")
DISPLACEMENTS = ("func_mean_fd",)

# Names of ABIDE's columns as BIDS has them, in lower case.
_NAMES = {"age_at_scan": "age", "site_id": "site", "dx_group": "group", "gender": "sex"}
_SEXES = {"1": "M", "2": "F", "male": "M", "female": "F", "m": "M", "f": "F"}
_GROUPS = {"1": "autism", "2": "control"}
# Only where no cell says anything else.
_LEVELS = {
    "sex": {"F": "female", "M": "male"},
    "group": {"autism": "autism spectrum disorder", "control": "typical control"},
}
_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "age": {"Description": "Age at the scan", "Units": "years"},
    "sex": {"Description": "Sex"},
    "site": {"Description": "Where the series was recorded"},
    "group": {"Description": "Diagnostic group"},
    "func_mean_fd": {"Description": "Mean framewise displacement", "Units": "mm"},
}


def read_phenotype(path: Path) -> pd.DataFrame:
    """Read a table, of tabs if its name ends in .tsv and else of commas; all cells are text.

    Empty cells, ``n/a``, and -9999, which ABIDE writes where it knows nothing, are missing.

    Raises
    ------
    OSError
    ValueError
        It isn't such a table.
    """
    import pandas as pd

    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator, dtype=str, na_values=["-9999", "-9999.0"])
    return table.rename(columns=str.strip)


def find_column(table: pd.DataFrame, names: Iterable[str]) -> str | None:
    """Return which of the names, in any case, the table has."""
    present = {column.lower(): column for column in table.columns}
    return next((present[name.lower()] for name in names if name.lower() in present), None)


def tabulate_participants(table: pd.DataFrame, labels: Iterable[str], key: str) -> pd.DataFrame:
    """Return ``participants.tsv``: BIDS' own columns first, the key as ``source_id``.

    TR is left out, since the series' own files say it.
    """
    import pandas as pd

    columns = {"participant_id": [f"sub-{label}" for label in labels]}
    known: dict[str, pd.Series[str]] = {}
    for column in table.columns:
        name = re.sub(r"\W+", "_", _NAMES.get(column.lower(), column.lower()))
        if column == key:
            known["source_id"] = table[column]
        elif column.lower() not in {word.lower() for word in TIMES}:
            known[name] = _recode(name, column, table[column])
    first = [name for name in ("age", "sex", "group", "site") if name in known]
    order = (*first, *(name for name in known if name not in first))
    return pd.DataFrame(columns | {name: list(known[name]) for name in order})


def describe_participants(participants: pd.DataFrame) -> dict[str, Any]:
    """Return the content of ``participants.json``."""
    described: dict[str, Any] = {}
    for name in participants.columns.drop("participant_id"):
        described[name] = dict(_KNOWN.get(name, {"Description": f"{name}, as in the source"}))
        if name in _LEVELS and set(participants[name].dropna()) <= set(_LEVELS[name]):
            described[name]["Levels"] = _LEVELS[name]
    return described


def _recode(name: str, column: str, cells: pd.Series[str]) -> pd.Series[str]:
    """Say sex and ABIDE's diagnosis in words; what has other codes is left as it is."""
    codes = {"sex": _SEXES}.get(name, _GROUPS if column.lower() == "dx_group" else {})
    words = cells.str.lower().str.removesuffix(".0")
    if not set(words.dropna()) <= set(codes):
        return cells
    return words.map(codes)
