"""Outcomes: what is to be predicted of people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Kind = Literal["class", "number"]
Metric = Literal["AUROC", "balanced accuracy", "r", "R2"]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What is to be predicted, one row per person.

    Attributes
    ----------
    name : str
    kind : {"class", "number"}
    values : array, (people,)
        Labels of classes, or finite numbers.
    people : sequence of str
        Labels; they, not the order of rows, decide who is in which fold.
    sites : sequence of str, optional
        The site, family or other group that no fold may split.
    units : str, optional
        Of numbers, as the sidecar states them.
    levels : mapping of str to str
        What each class is, as the sidecar states it.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    people: Sequence[str]
    sites: Sequence[str] | None = None
    units: str | None = None
    levels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sites = self.people if self.sites is None else self.sites
        if not len(set(self.people)) == len(self.people) == len(self.values) == len(sites):
            raise ValueError(f"{self.name}: one value, one site and one label for each person")

    @property
    def classes(self) -> NDArray[Any]:
        return np.unique(self.values)

    @property
    def metric(self) -> Metric:
        """The area under the ROC curve, balanced accuracy from three classes on, or Pearson's r."""
        if self.kind == "number":
            return "r"
        return "AUROC" if len(self.classes) == 2 else "balanced accuracy"

    def take(self, rows: Integers) -> Outcome:
        """Return the outcome of some people."""
        return replace(
            self,
            values=self.values[rows],
            people=[self.people[row] for row in rows],
            sites=None if self.sites is None else [self.sites[row] for row in rows],
        )
