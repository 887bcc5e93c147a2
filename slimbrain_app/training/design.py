"""What the settings of a pretraining leave to the preset, decided; and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import JEPA, Jepa
from slimbrain_app.model.mae import Mae, MaeSettings
from slimbrain_app.model.objective import Objective
from slimbrain_app.model.presets import CONTRACTS, PRESETS, EncoderSizes
from slimbrain_app.records import Contract
from slimbrain_app.settings import Preset, PretrainSettings
from slimbrain_app.training.corpus import Item

# Windows per step, and of a run in a pass. A window of the larger presets costs so much more than
# reading it that a pass may as well see each run once.
_BATCH: dict[Preset, int] = {"tiny": 8, "base": 64, "official": 64}
_WINDOWS_PER_RUN: dict[Preset, int] = {"tiny": 4, "base": 1, "official": 1}
# Highest rate at 64 windows per step, and the target encoder's first momentum. A training of `tiny`
# has hundreds of steps, not tens of thousands: all must go faster.
_RATE: dict[Preset, float] = {"tiny": 0.012, "base": 5e-4, "official": 5e-4}
_MOMENTUM: dict[Preset, float] = {"tiny": 0.99, "base": 0.996, "official": 0.996}


@dataclass(frozen=True, slots=True)
class Design:
    """Input and sizes; windows per step, and of a run in a pass; rate; first momentum."""

    contract: Contract
    sizes: EncoderSizes
    batch: int
    windows_per_run: int
    rate: float
    momentum: float

    def count_steps(self, items: Sequence[Item]) -> int:
        """Return the steps of a pass."""
        windows = sum(min(self.windows_per_run, len(item.starts)) for item in items)
        return -(-windows // self.batch)


def make_design(settings: PretrainSettings) -> Design:
    """Take the preset's own where the settings state nothing."""
    preset, given, stated = settings.preset, settings.contract, settings.objective.momentum
    own = CONTRACTS[preset]
    contract = replace(
        own,
        frame_time=given.frame_time or own.frame_time,
        channels=given.channels or own.channels,
    )
    return Design(
        contract=contract,
        sizes=replace(PRESETS[preset], channels=len(contract.channels)),
        batch=settings.train.batch or _BATCH[preset],
        windows_per_run=settings.train.windows_per_run or _WINDOWS_PER_RUN[preset],
        rate=settings.train.rate or _RATE[preset],
        momentum=_MOMENTUM[preset] if stated is None else stated,
    )


def make_objective(settings: PretrainSettings, design: Design) -> Objective:
    """Return the networks of a training that begins, all drawn from the seed."""
    encoder, asked = Encoder(design.sizes, settings.seed), settings.objective
    if asked.name == "mae":
        return Mae(encoder, MaeSettings(weights=asked.weights), settings.seed)
    jepa = replace(
        JEPA[settings.preset],
        weights=asked.weights,
        first_momentum=design.momentum,
        last_momentum=asked.last_momentum,
        decorrelation=asked.decorrelation,
    )
    return Jepa(encoder, jepa, settings.seed)
