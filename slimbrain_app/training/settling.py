"""What a pretraining learns from, settled once: who, which windows, by which extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimbrain_app.files import whole_file
from slimbrain_app.ranking import JUDGED
from slimbrain_app.records import Recording, Refusal
from slimbrain_app.training.checkpoint import (
    read_content,
    require_same_corpus,
    require_same_settings,
    write_content,
)
from slimbrain_app.training.corpus import Corpus, rank_corpus, split_people
from slimbrain_app.training.folder import Tell, telling
from slimbrain_app.training.log import Extract, pick, read_log
from slimbrain_app.training.manifest import (
    Manifest,
    read_manifest,
    require_same_runs,
    write_manifest,
)
from slimbrain_app.training.pretraining import Pretraining, describe_origin

if TYPE_CHECKING:
    import torch

    from slimbrain_app.model.extractor import TemporalExtractor

# Says what is counted, how many are done, and of how many.
Count = Callable[[str, int, int], None]


def settle_corpus(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    refusals: Mapping[str, Sequence[Refusal]],
    device: torch.device,
    tell: Tell,
    count: Count,
) -> Manifest:
    """Split, train the temporal extractor, select windows; or take what an earlier call settled.

    For the first process only.

    Raises
    ------
    CallRefused
        ``too-few``; ``settings-changed`` or ``corpus-changed`` if an earlier call began otherwise.
    """
    settings, path = pretraining.settings, pretraining.manifest
    fingerprint = settings.fingerprint()
    if path.exists():
        earlier = read_manifest(path)
        require_same_settings(path, earlier.settings, fingerprint)
        require_same_runs(earlier, recordings, path)
        corpus, refusals = earlier.gather(recordings), earlier.refusals
    else:
        corpus = _make_corpus(pretraining, recordings, device, tell, count)
    manifest = Manifest.of(corpus, refusals, fingerprint)
    write_manifest(path, manifest)
    return manifest


def _make_corpus(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    device: torch.device,
    tell: Tell,
    count: Count,
) -> Corpus:
    settings, contract = pretraining.settings, pretraining.design.contract
    kept, held_out = split_people(recordings, settings.corpus.validation, settings.seed)
    pretraining.extractor.unlink(missing_ok=True)  # Of a call that ended before this.
    extractor = None
    if settings.extract.passes and settings.rank.mode in JUDGED:
        extractor = _train_extractor(pretraining, kept, held_out, device, tell)
    items = rank_corpus(
        [*kept, *held_out],
        contract,
        extractor,
        settings.rank,
        settings.seed,
        lambda done, total: count("rank", done, total),
    )
    return Corpus(tuple(items[: len(kept)]), tuple(items[len(kept) :]), contract)


def _train_extractor(
    pretraining: Pretraining,
    recordings: Sequence[Recording],
    held_out: Sequence[Recording],
    device: torch.device,
    tell: Tell,
) -> TemporalExtractor | None:
    """Train the temporal extractor, from its last pass if an earlier call made some.

    One that tells next to nothing about people kept out is not kept: windows are ranked better
    without.
    """
    from safetensors.torch import save_file

    from slimbrain_app.training.temporal import is_useful, train_extractor

    path = pretraining.extractor_state
    origin = describe_origin(pretraining.settings, [*recordings, *held_out])
    begun = _read_begun(path, origin)

    def save(state: dict[str, Any]) -> None:
        write_content(path, {**origin, "state": state})

    tensorboard = pretraining.settings.pace.tensorboard
    with telling(pretraining, None if begun is None else 0, tensorboard, tell) as log:
        extractor = train_extractor(
            recordings,
            pretraining.design.contract,
            pretraining.settings.extract,
            pretraining.settings.seed,
            log,
            validation=held_out,
            device=str(device),
            work=pretraining.checkpoints / "cells",
            state=begun,
            save=save,
        )
    if not is_useful(pick(read_log(pretraining.log), Extract)[-1]):
        return None
    with whole_file(pretraining.extractor) as temporary:
        save_file(extractor.state_dict(), temporary)
    return extractor


def _read_begun(path: Path, origin: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Return the state of an extractor that an earlier call of this training began, if any."""
    if not path.exists():
        return None
    content = read_content(path)
    require_same_settings(path, content["settings"], origin["settings"])
    require_same_corpus(path, content["recordings"], origin["recordings"])
    state: Mapping[str, Any] = content["state"]
    return state
