"""``participants.tsv``: what it says of people beside their images."""

from __future__ import annotations

import csv
import re
from pathlib import Path

TABLE = "participants.tsv"
# Without case and marks: SITE_ID, site_id, Site and siteID are all in use.
_SITES = ("site", "siteid", "sitename", "acquisitionsite", "center", "centre", "scannersite")
_MISSING = ("", "n/a", "nan")


def read_labels(dataset: Path) -> tuple[str, ...]:
    """Return the participants in the table's order; nothing where there is none."""
    return tuple(dict.fromkeys(map(_label_of, _read_rows(dataset))))


def read_sites(dataset: Path) -> dict[str, str]:
    """Return the site of each participant, by label, where the dataset states it."""
    rows = _read_rows(dataset)
    column = next((name for name in (rows[0] if rows else ()) if name and is_site(name)), None)
    if column is None:
        return {}
    sites = {_label_of(row): (row[column] or "").strip() for row in rows}
    return {label: site for label, site in sites.items() if site.lower() not in _MISSING}


def _read_rows(dataset: Path) -> list[dict[str, str]]:
    try:
        text = (dataset / TABLE).read_text(encoding="utf-8-sig")
        return list(csv.DictReader(text.splitlines(), delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []  # No table, or none that can be read: neither sites nor order are needed.


def _label_of(row: dict[str, str]) -> str:
    return (row.get("participant_id") or "").strip().removeprefix("sub-")


def is_site(column: str) -> bool:
    """Whether a column has one of the usual names of a site."""
    return re.sub(r"[^a-z]", "", column.lower()) in _SITES
