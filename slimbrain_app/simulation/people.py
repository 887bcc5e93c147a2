"""People who don't exist: age, sex and the ways in which their brains differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.simulation.networks import Regions

Sex = Literal["F", "M"]

_YOUNGEST, _OLDEST = 20, 80
# Correlation of any two networks, but for the two pairs that age and sex decide.
_COUPLING = 0.15
AGE_PAIR = ("DefaultMode", "FrontoParietal")
AGE_COUPLING = (-0.4, 0.5)
SEX_PAIR = ("SomatomotorDorsal", "Visual")
SEX_COUPLING = {"F": 0.5, "M": 0.0}

# Deviations between people: mixing of networks, places of regions (mm), strength of regions.
_MIXING, _PLACE, _GAIN = 0.08, 2.5, 0.25


@dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """One participant.

    Attributes
    ----------
    label : str
        BIDS label without ``sub-``.
    age : int
        Years.
    sex : {'F', 'M'}
    mixing : ndarray, shape (networks, networks)
        Takes independent time courses to those of the networks; rows have unit length.
    coordinates : ndarray, shape (regions, 3)
        Where this person's regions lie, mm.
    gains : ndarray, shape (regions,)
        How strong each region's signal is, 1 on average.
    restlessness : float
        Head motion relative to a typical person.
    """

    label: str
    age: int
    sex: Sex
    mixing: NDArray[np.float64]
    coordinates: NDArray[np.float64]
    gains: NDArray[np.float64]
    restlessness: float


def draw_person(number: int, regions: Regions, generator: np.random.Generator) -> Person:
    """Draw a person; their networks are coupled as `expect_coupling` says, give or take.

    Odd numbers are women, even ones men, so that a few people make a balanced sample.
    """
    age = int(generator.integers(_YOUNGEST, _OLDEST, endpoint=True))
    sex: Sex = "F" if number % 2 else "M"
    mixing = np.linalg.cholesky(expect_coupling(regions.names, age, sex))
    mixing = mixing + _MIXING * generator.standard_normal(mixing.shape)
    shifts = _PLACE * generator.standard_normal(regions.coordinates.shape)
    count = len(regions.network)
    return Person(
        label=f"{number:02d}",
        age=age,
        sex=sex,
        mixing=np.asarray(mixing / np.linalg.norm(mixing, axis=1, keepdims=True)),
        coordinates=regions.coordinates + shifts,
        gains=generator.lognormal(-0.5 * _GAIN**2, _GAIN, count),
        restlessness=draw_restlessness(generator),
    )


def draw_restlessness(generator: np.random.Generator) -> float:
    """Return how much someone moves relative to a typical person."""
    return float(generator.lognormal(0, 0.4))


def expect_coupling(names: tuple[str, ...], age: int, sex: Sex) -> NDArray[np.float64]:
    """Return the mean correlation between networks at an age and sex.

    The pair in ``AGE_PAIR`` goes in a straight line from -0.4 at 20 to 0.5 at 80 years, the pair in
    ``SEX_PAIR`` is coupled in women only. None of this is a claim about people.
    """
    coupling = np.full((len(names), len(names)), _COUPLING)
    np.fill_diagonal(coupling, 1)
    by_age = np.interp(age, (_YOUNGEST, _OLDEST), AGE_COUPLING)
    for pair, value in ((AGE_PAIR, by_age), (SEX_PAIR, SEX_COUPLING[sex])):
        first, second = (names.index(name) for name in pair)
        coupling[first, second] = coupling[second, first] = value
    return coupling
