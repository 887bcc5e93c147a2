"""The people that are judged: who they are, where from, and that nobody is there twice."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from slimbrain_app.bids.participants import is_site
from slimbrain_app.errors import CallRefused
from slimbrain_app.evaluation.outcomes import Phenotype
from slimbrain_app.evaluation.split_file import Split
from slimbrain_app.records import Recording

MOTION = "motion"
_USUAL = ("age", "ageatscan", "ageyears", "sex", "gender")
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class People:
    """Participants with runs, in the order of their labels.

    Attributes
    ----------
    labels : tuple of str
    sites, families : tuple of str or None, or None
        None where the table has no such column, or no value.
    covariates : DataFrame
        One row each; numbers where all that is known are.
    split : Split or None
        Who is fitted to and who is judged, where the user has laid it down.
    """

    labels: tuple[str, ...]
    sites: tuple[str | None, ...]
    families: tuple[str, ...] | None
    covariates: pd.DataFrame
    split: Split | None = None

    def find(self, labels: Sequence[str]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Return where people are among these."""
        places = {label: place for place, label in enumerate(self.labels)}
        return np.array([places[label] for label in labels], int)

    def list_families(self, labels: Sequence[str]) -> tuple[str, ...] | None:
        """Return the families of people among these, if any are known."""
        return self.families and tuple(self.families[row] for row in self.find(labels))


def describe_people(
    phenotype: Phenotype,
    motion: Mapping[str, float],
    *,
    site: str | None,
    family: str | None,
    covariates: Sequence[str] | None,
    split: Split | None = None,
) -> People:
    """Look up what a table says of participants.

    Parameters
    ----------
    phenotype : Phenotype
    motion : mapping of str to float
        The mean framewise displacement (mm) of each participant, by label; NaN where unknown.
    site, family : str or None
        Columns. The site is found by its usual names if None.
    covariates : sequence of str or None
        Columns; ``motion`` stands for the displacement. None for age, sex, site and motion, as far
        as known.
    split : Split, optional

    Raises
    ------
    CallRefused
        ``no-outcome`` for a column that is not there.
    """
    labels = tuple(sorted(motion))
    table = _tabulate(phenotype, labels)
    site = site or next((name for name in phenotype.columns if is_site(name)), None)
    if covariates is None:
        usual = [name for name in phenotype.columns if _plain(name) in _USUAL]
        covariates = [*usual, *([site] if site else []), MOTION]
    wanted = [name for name in (*covariates, site, family) if name and name != MOTION]
    _require(wanted, phenotype)
    own = table[[name for name in dict.fromkeys(covariates) if name != MOTION]].copy()
    for name in own.columns:
        numbers = pd.to_numeric(own[name], errors="coerce")
        own[name] = (
            numbers if numbers.notna().equals(own[name].notna()) else own[name].fillna("n/a")
        )
    if MOTION in covariates:
        own[MOTION] = [motion[label] for label in labels]
    own = own.loc[:, own.notna().any()]
    return People(
        labels=labels,
        sites=tuple(table[site].where(table[site].notna(), None))
        if site
        else (None,) * len(labels),
        families=_name_families(table[family]) if family else None,
        covariates=own,
        split=split,
    )


def refuse_twins(recordings: Iterable[Recording]) -> None:
    """Refuse people who share a BOLD file: one of them would be on both sides of a split.

    Raises
    ------
    CallRefused
        ``leak``, with the names of all.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for recording in recordings:
        owners[recording.prepared.identity].add(recording.person)
    twins = sorted({" and ".join(sorted(people)) for people in owners.values() if len(people) > 1})
    if twins:
        raise CallRefused(
            "leak",
            expected="each person under one label: no two with the same BOLD file",
            found="; ".join(twins[:_SHOWN])
            + (f" and {len(twins) - _SHOWN} more" if len(twins) > _SHOWN else ""),
            advice="leave one of them out with --participant-label, or give both one label",
        )


def _tabulate(phenotype: Phenotype, labels: Sequence[str]) -> pd.DataFrame:
    rows: dict[str, Sequence[str | None]] = {}
    for row in phenotype.rows:
        rows.setdefault(row.person, row.cells)
    cells = [rows.get(label, (None,) * len(phenotype.columns)) for label in labels]
    table = pd.DataFrame(cells, index=list(labels), columns=list(phenotype.columns), dtype=object)
    return table.where(~table.isin(["", "n/a", "N/A", "nan", "NaN"]), None)


def _require(names: Iterable[str], phenotype: Phenotype) -> None:
    missing = [name for name in names if phenotype.columns.count(name) != 1]
    if missing:
        raise CallRefused(
            "no-outcome",
            file=phenotype.file.name,
            expected=f"the columns {', '.join(missing)}, each once",
            found=", ".join(phenotype.columns),
            advice="name columns as the table has them",
        )


def _name_families(column: pd.Series[str]) -> tuple[str, ...]:
    """Return a family for everybody; whoever has none known is one alone."""
    alone = pd.Series([f"sub-{label}" for label in column.index], column.index)
    return tuple(column.where(column.notna(), alone))


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
