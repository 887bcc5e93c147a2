"""Time courses of regions: random events, their haemodynamic response, networks that share them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.simulation.networks import Regions

# Events per second, share of a region's variance that it has from its network.
_RATE, _COHESION = 0.1, 0.6
# Events are laid on a time grid of about this step, s.
_STEP = 0.1


def draw_time_courses(
    regions: Regions,
    mixing: NDArray[np.float64],
    volumes: int,
    tr: float,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return one time course per region, shape (volumes, regions), of mean 0 and deviation 1.

    Both are expectations: a short run strays from them.
    """
    networks = len(regions.names)
    independent = draw_responses(networks + len(regions.network), volumes, tr, generator)
    shared = independent[:, :networks] @ mixing.T
    own = independent[:, networks:]
    return np.asarray(_COHESION**0.5 * shared[:, regions.network] + (1 - _COHESION) ** 0.5 * own)


def draw_responses(
    count: int, volumes: int, tr: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return independent responses to random events, shape (volumes, count).

    Events come at random, with exponential strength, and begin a response's length before the
    first volume. The response is Glover's double gamma (1999, NeuroImage 9:416-429).
    """
    from nilearn.glm.first_level import glover_hrf
    from scipy.signal import oaconvolve

    steps = int(np.ceil(tr / _STEP))
    expected = _RATE * tr / steps
    response = glover_hrf(tr, oversampling=steps)
    events = _draw_events(((volumes - 1) * steps + len(response), count), expected, generator)
    series = oaconvolve(events, response[:, None], mode="valid", axes=0)[::steps]
    # An exponential strength has the mean 1 and the mean square 2.
    deviation = np.sqrt(2 * expected * np.sum(response**2))
    return np.asarray((series - expected * response.sum()) / deviation)


def _draw_events(
    shape: tuple[int, int], expected: float, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Lay a Poisson number of events, ``expected`` per element, at random places."""
    size = shape[0] * shape[1]
    number = generator.poisson(expected * size)
    strengths = generator.standard_exponential(number)
    events = np.bincount(generator.integers(size, size=number), strengths, size)
    return np.asarray(events, dtype=np.float64).reshape(shape)
