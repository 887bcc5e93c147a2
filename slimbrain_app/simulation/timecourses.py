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
    chance = _RATE * tr / steps
    response = glover_hrf(tr, oversampling=steps)
    shape = ((volumes - 1) * steps + len(response), count)
    events = generator.standard_exponential(shape) * (generator.random(shape) < chance)
    series = oaconvolve(events, response[:, None], mode="valid", axes=0)[::steps]
    # Mean and variance of an event: chance x 1 and chance x 2 - chance squared.
    deviation = np.sqrt((2 * chance - chance**2) * np.sum(response**2))
    return np.asarray((series - chance * response.sum()) / deviation)
