"""What comes of a pretraining: a model package, made once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from slimbrain_app.model.packages import (
    SEEN,
    Config,
    Package,
    describe_seen,
    find_made,
    save_package,
)
from slimbrain_app.records import Recording
from slimbrain_app.training.card import Facts, Source, write_card
from slimbrain_app.training.corpus import Corpus
from slimbrain_app.training.log import read_log
from slimbrain_app.training.pretraining import Pretraining, describe_origin
from slimbrain_app.training.readout import fit_readout

if TYPE_CHECKING:
    from slimbrain_app.model.extractor import TemporalExtractor
    from slimbrain_app.model.objective import Objective

RECORD = "training.json"


def find_finished(pretraining: Pretraining, recordings: Sequence[Recording]) -> Package | None:
    """Return the package if an earlier call has made it of the same runs and settings.

    Raises
    ------
    CallRefused
        ``usage`` if another package stands in its place.
    """
    if pretraining.checkpoints.exists():
        return None
    origin = describe_origin(pretraining.settings, recordings)
    return find_made(pretraining.folder, RECORD, origin, "runs")


def publish(
    pretraining: Pretraining,
    objective: Objective,
    corpus: Corpus,
    sources: Sequence[Source],
    software: Mapping[str, str],
) -> Package:
    """Make a package of what was trained; the checkpoints go. For the first process only.

    Parameters
    ----------
    sources : sequence of Source
        The corpus dataset by dataset, for the card.
    software : mapping of str to str
        Package and version, for the card.
    """
    settings, design, folder = pretraining.settings, pretraining.design, pretraining.folder
    recordings = [item.recording for item in (*corpus.train, *corpus.validation)]
    extractor = _load_extractor(pretraining)
    config = Config(
        preset=settings.preset,
        trained=True,
        seed=settings.seed,
        contract=design.contract,
        encoder=design.sizes,
        extractor=None if extractor is None else extractor.sizes,
    )
    facts = Facts(
        sources=sources,
        validation_people=len({item.recording.person for item in corpus.validation}),
        settings=settings,
        events=read_log(pretraining.log),
        licence="not stated; what the terms of the data allow",
        software=software,
    )
    # Beside the package, not part of it: it tells times, which are never the same.
    shutil.copyfile(pretraining.log, pretraining.finished_log)
    origin = json.dumps(describe_origin(settings, recordings), indent=2) + "\n"
    seen = describe_seen(recording.prepared for recording in recordings)
    device = next(objective.parameters()).device
    readout = fit_readout(objective.trained, corpus.train, design.contract, device)
    return save_package(
        folder,
        config,
        objective.trained.cpu(),
        extractor,
        readout=readout,
        card=write_card(folder.name, config, facts),
        records={RECORD: origin, SEEN: seen},
    )


def _load_extractor(pretraining: Pretraining) -> TemporalExtractor | None:
    """Return the extractor of a training under way, or None if it has none."""
    if not pretraining.extractor.exists():
        return None
    from safetensors.torch import load_file

    from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor

    extractor = TemporalExtractor(ExtractorSizes())
    extractor.load_state_dict(load_file(pretraining.extractor))
    return extractor
