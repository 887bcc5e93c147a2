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


@dataclass(frozen=True, slots=True)
class Design:
    """Input, sizes, windows per step and windows of a run in a pass."""

    contract: Contract
    sizes: EncoderSizes
    batch: int
    windows_per_run: int

    def count_steps(self, items: Sequence[Item]) -> int:
        """Return the steps of a pass."""
        windows = sum(min(self.windows_per_run, len(item.starts)) for item in items)
        return -(-windows // self.batch)


def make_design(settings: PretrainSettings) -> Design:
    """Take the preset's own where the settings state nothing."""
    preset, given = settings.preset, settings.contract
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
    )


def make_objective(settings: PretrainSettings, sizes: EncoderSizes) -> Objective:
    """Return the networks of a training that begins, all drawn from the seed."""
    encoder, asked = Encoder(sizes, settings.seed), settings.objective
    if asked.name == "mae":
        return Mae(encoder, MaeSettings(weights=asked.weights), settings.seed)
    jepa = replace(
        JEPA[settings.preset],
        weights=asked.weights,
        first_momentum=asked.momentum,
        last_momentum=asked.last_momentum,
    )
    return Jepa(encoder, jepa, settings.seed)
