"""A recipe: a benchmark of the paper, as far as public material tells it, and how to repeat it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Select

FOLDER = Path(str(files("slimbrain_app"))) / "data" / "recipes"

Text = Annotated[str, MinLen(1)]
Names = Annotated[tuple[Text, ...], MinLen(1)]
Columns = tuple[Text, ...]

_STRICT = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class Data:
    """A cohort, and what its owner says of it.

    Attributes
    ----------
    cohort, page, terms : str
        Its name, where its owner is asked for it, and on which terms, in a word.
    naming : str
        How its people and runs are called as BIDS.
    people, runs : int or None
        In the release; and of each person in the selected tasks. None where nobody says it for all.
    tr : float or None
        s, where all runs have the same.
    """

    __pydantic_config__ = _STRICT

    cohort: Text
    page: Text
    terms: Text
    naming: Text
    people: Annotated[int, Gt(0)] | None = None
    runs: Annotated[int, Gt(0)] | None = None
    tr: Annotated[float, Gt(0)] | None = None


@dataclass(frozen=True, kw_only=True)
class People:
    """How the cohort's own table speaks of people.

    Attributes
    ----------
    keys : tuple of str
        Columns with the cohort's own name of a person; the first one that is there counts.
    prefixes : tuple of str
        What converters write before it.
    digits : int
        Zeros are written before a number up to so many digits.
    missing : tuple of str
        Marks of what is not known.
    family : tuple of str
        Columns; people of one family stay on one side.
    covariates : mapping of str to tuple of str
        What else is taken over, by the name that an evaluation knows it by.
    """

    __pydantic_config__ = _STRICT

    keys: Names
    prefixes: Columns = ()
    digits: Annotated[int, Ge(0)] = 0
    missing: Columns = ()
    family: Columns = ()
    covariates: Mapping[Literal["site", "age", "sex"], Names] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is told of people, by one of three ways to read a cell.

    Attributes
    ----------
    name : str
        As the evaluation's tables call it.
    columns : tuple of str
        Of the cohort's table; the first one that is there counts.
    classes : mapping of str to tuple of str
        The codes of each class. Whoever has another code is left out.
    bands : mapping of str to (float, float)
        Of numbers, from the first up to, but without, the second.
    units : str or None
        Of numbers that are taken as they are.
    doubt : str
        What of this isn't certain.
    """

    __pydantic_config__ = _STRICT

    name: Text
    columns: Names
    classes: Mapping[str, Names] = field(default_factory=dict)
    bands: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    units: str | None = None
    doubt: str

    def __post_init__(self) -> None:
        if [bool(self.classes), bool(self.bands), self.units is not None].count(True) != 1:
            raise ValueError("one of classes, bands and units")
        codes = [code for own in self.classes.values() for code in own]
        if len(codes) != len(set(codes)):
            raise ValueError("each code in one class")

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes; none where numbers are told."""
        return tuple(self.classes or self.bands)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of the paper as public reviews repeat it; of shares, in percent."""

    __pydantic_config__ = _STRICT

    model: Text
    fit: Literal["fine-tuned", "linear"]
    metric: Text
    value: float
    spread: float | None = None

    def __str__(self) -> str:
        return f"{self.value:g}" + (f" ± {self.spread:g}" if self.spread is not None else "")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """What the paper did, and found."""

    __pydantic_config__ = _STRICT

    split: Text
    figures: Annotated[tuple[Figure, ...], MinLen(1)]
    notes: tuple[Text, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The row of an evaluation's metrics that is compared with a metric of the paper.

    ``reading`` says what is compared, where it isn't the value itself.
    """

    __pydantic_config__ = _STRICT

    figure: Text
    outcome: Text
    scheme: Literal["person", "site", "run"]
    metric: Text
    reading: str = ""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """How an evaluation leaves people out, and where to look."""

    __pydantic_config__ = _STRICT

    split: Text
    rows: Annotated[tuple[Comparison, ...], MinLen(1)]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A benchmark. Where ``identity`` is true, people are known again, and nothing is predicted."""

    __pydantic_config__ = _STRICT

    name: Text
    title: Text
    output_spaces: Names
    data: Data
    select: Select
    people: People
    outcome: Target
    paper: Paper
    ours: Ours
    identity: bool = False


def list_recipes() -> tuple[Recipe, ...]:
    """Return all recipes, by name."""
    return tuple(map(_read, sorted(FOLDER.glob("*.toml"))))


def load_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises
    ------
    CallRefused
        ``usage`` if there is none.
    """
    known = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    if name not in known:
        raise CallRefused(
            "usage",
            expected=f"a recipe: {', '.join(known)}",
            found=name,
            advice="see slimbrain-tools recipe",
        )
    return _read(known[name])


def make_settings(recipe: Recipe, table: str) -> dict[str, Any]:
    """Return the settings of an evaluation that differ from its defaults.

    Parameters
    ----------
    recipe : Recipe
    table : str
        The file of people that `slimbrain_app.recipes.people` has written.
    """
    select: dict[str, Any] = {"tasks": list(recipe.select.tasks)}
    if recipe.select.filters:
        select["filters"] = {key: list(own) for key, own in recipe.select.filters.items()}
    predict: dict[str, Any] = {"outcomes": [recipe.outcome.name], "phenotype": table}
    if recipe.people.family:
        predict["family"] = "family"
    return {"select": select, "predict": predict}


def _read(file: Path) -> Recipe:
    from pydantic import TypeAdapter

    table = {"name": file.stem} | tomllib.loads(file.read_text(encoding="utf-8"))
    # As settings are: JSON mode takes lists for tuples and 2 for 2.0.
    return TypeAdapter(Recipe).validate_json(json.dumps(table), strict=True)
