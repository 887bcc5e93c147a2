"""What sets one site's scans apart from another's, and one person's from the next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from slimbrain_app.simulation.anatomy import Anatomy
from slimbrain_app.simulation.noise import SPREAD, draw_field

# Shading by coils and by the person in them: share of the signal at rest, width in mm.
_COIL, PERSON, _WIDTH = 0.1, 0.05, 30.0
# How far sites stray from the usual noise: its strength, and its spread, at most.
_STRENGTH, _SMOOTHNESS, _MOST = 0.12, 0.1, 2.0


@dataclass(frozen=True, kw_only=True)
class Site:
    """A scanner's habits.

    Attributes
    ----------
    noisiness : float
        How strong noise and nuisance are, relative to the usual.
    spread : float
        Deviation of the Gaussian that makes noise smooth, mm.
    seed : int
        From which its coil's shading is drawn.
    """

    noisiness: float
    spread: float
    seed: int


def draw_site(name: str, seed: int) -> Site:
    """Draw a site's habits: the same for the same name and seed, whichever others there are."""
    generator = seed_by_name(seed, f"site {name}")
    strength, smoothness = np.clip(generator.standard_normal(2), -_MOST, _MOST)
    return Site(
        noisiness=float(np.exp(_STRENGTH * strength)),
        spread=float(SPREAD * np.exp(_SMOOTHNESS * smoothness)),
        seed=int(generator.integers(2**32)),
    )


def shade_coil(anatomy: Anatomy, site: Site) -> Anatomy:
    """Return the head as the site's coil sees it."""
    return shade(anatomy, _COIL, np.random.default_rng(site.seed))


def shade(anatomy: Anatomy, strength: float, generator: np.random.Generator) -> Anatomy:
    """Return the head with a smooth random shading of its signal at rest."""
    shading = 1 + strength * draw_field(anatomy, _WIDTH, generator)
    return replace(anatomy, rest=(anatomy.rest * shading).astype(np.float32))


def seed_by_name(seed: int, name: str) -> np.random.Generator:
    """Return a generator for one of many, whatever their number and order."""
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=words.tolist()))
