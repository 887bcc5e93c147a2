"""The methods text follows the settings that ran."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from slimbrain_app.records import Head, ModelIdentity
from slimbrain_app.report.methods import describe_methods, describe_pretraining
from slimbrain_app.settings import (
    Corpus,
    Encode,
    Extract,
    Hide,
    Objective,
    Output,
    ParticipantSettings,
    Prepare,
    PretrainSettings,
    Rank,
    Train,
)
from slimbrain_app.training.log import Start

SOFTWARE = {"SlimBrain": "0.1.0", "nibabel": "5.4.2", "nipype": "1.10.0", "torch": "2.9.1"}
START = Start(passes=7, steps=91, batch=32, windows_per_run=3, warm_up=4, frames=40, width=192)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (ParticipantSettings(seed=7), "seed was 7"),
        (ParticipantSettings(rank=Rank(windows=3)), "Up to 3 windows"),
        (ParticipantSettings(rank=Rank(windows="all")), "All windows"),
        (ParticipantSettings(rank=Rank(mode="uniform")), "ranking mode 'uniform'"),
        (ParticipantSettings(rank=Rank(fd_threshold=0.25)), "over 0.25 mm"),
        (ParticipantSettings(prepare=Prepare(dummy_scans=5)), "first 5 volumes"),
        (ParticipantSettings(encode=Encode(views=3)), "at 3 slightly shifted onsets"),
    ],
)
def test_text_follows_the_settings(
    settings: ParticipantSettings, words: str, model: ModelIdentity
) -> None:
    assert words in describe_methods(settings, model, SOFTWARE)
    assert words not in describe_methods(ParticipantSettings(), model, SOFTWARE)


def test_text_names_model_and_versions(model: ModelIdentity) -> None:
    text = describe_methods(ParticipantSettings(), model, SOFTWARE)
    for words in ("'tiny'", model.sha256[:12], "SlimBrain 0.1.0", "nibabel 5.4.2", "Nipype 1.10.0"):
        assert words in text


def test_untrained_weights_are_named_so(model: ModelIdentity) -> None:
    settings = ParticipantSettings()
    assert "untrained" in describe_methods(settings, model, SOFTWARE)
    assert "untrained" not in describe_methods(settings, replace(model, trained=True), SOFTWARE)


def test_heads_that_predict_are_named(model: ModelIdentity) -> None:
    age = Head(outcome="age", kind="number", people=41)
    sex = Head(outcome="sex", kind="class", people=40, classes=("F", "M"))
    settings, headed = ParticipantSettings(), replace(model, heads=(age, sex))
    words = "predicted age (fitted to 41 people) and sex (fitted to 40 people)."
    assert words in describe_methods(settings, headed, SOFTWARE)
    assert "predicted" not in describe_methods(settings, model, SOFTWARE)


def test_attribution_is_told_of_heads_alone(model: ModelIdentity) -> None:
    wished = ParticipantSettings(output=Output(attribution=True))
    told = replace(model, heads=(Head(outcome="age", kind="number", people=41),))
    words = "integrated gradients (Sundararajan et al., 2017)"
    assert words in describe_methods(wished, told, {})
    assert "Axiomatic attribution" in describe_methods(wished, told, {})
    assert words not in describe_methods(wished, model, {})
    assert words not in describe_methods(ParticipantSettings(), told, {})


@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_every_citation_has_its_reference_and_none_is_left_over(
    threshold: float, model: ModelIdentity
) -> None:
    settings = ParticipantSettings(rank=Rank(fd_threshold=threshold))
    text, references = describe_methods(settings, model, SOFTWARE).split("## References")
    lines = [line[2:] for line in references.splitlines() if line.startswith("- ")]
    for line in lines:
        year = re.search(r"\((\d{4})\)", line)
        assert f"{line.split()[0]} et al.{f', {year[1]}' if year else ''})" in text
    assert len(lines) == text.count("et al.")


def test_text_tells_the_models_own_contract(model: ModelIdentity) -> None:
    contract = replace(model.contract, frame_time=2.0, frames=20, channels=("global", "voxel"))
    text = describe_methods(ParticipantSettings(), replace(model, contract=contract), SOFTWARE)
    assert "20 frames (40 s)" in text
    assert "every 2 s" in text
    assert "the whole brain's and, as a second channel, each voxel's own" in text


def describe(settings: PretrainSettings, model: ModelIdentity) -> str:
    return describe_pretraining(settings, model.contract, START, SOFTWARE)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (PretrainSettings(seed=7), "seed was 7"),
        (PretrainSettings(rank=Rank(mode="uniform")), "ranking mode 'uniform'"),
        (PretrainSettings(extract=Extract(passes=5)), "(5 passes)"),
        (PretrainSettings(extract=Extract(passes=0)), "without a trained extractor"),
        (
            PretrainSettings(objective=Objective(name="mae")),
            "a masked autoencoder (He et al., 2022)",
        ),
        (PretrainSettings(objective=Objective(momentum=0.9)), "momentum from 0.9 to 1"),
        (PretrainSettings(objective=Objective(weights=(1, 0, 0))), "weighted by 1, 0, 0"),
        (PretrainSettings(hide=Hide(visible_times=0.7)), "70 % of the times"),
        (PretrainSettings(corpus=Corpus(validation=0.2)), "20 % of the people were kept out"),
        (PretrainSettings(train=Train(rate=1e-3)), "of the steps to 0.0005 and"),
        (PretrainSettings(train=Train(clip=0.3)), "at a norm of 0.3"),
        (PretrainSettings(preset="base"), "preset 'base'"),
    ],
)
def test_text_of_a_pretraining_follows_the_settings(
    settings: PretrainSettings, words: str, model: ModelIdentity
) -> None:
    assert words in describe(settings, model)
    assert words not in describe(PretrainSettings(), model)


def test_text_of_a_pretraining_tells_what_the_preset_decided(model: ModelIdentity) -> None:
    text = describe(PretrainSettings(), model)
    assert "7 passes over all runs, 91 steps of 32 windows, 3 of each run in a pass" in text
    assert "PyTorch 2.9.1" in text


@pytest.mark.parametrize("name", ["jepa", "mae"])
@pytest.mark.parametrize("threshold", [0.5, 0.0])
def test_text_of_a_pretraining_cites_what_it_lists(name, threshold, model: ModelIdentity) -> None:
    settings = PretrainSettings(objective=Objective(name=name), rank=Rank(fd_threshold=threshold))
    text, references = describe(settings, model).split("## References")
    listed = [line[2:].split()[0] for line in references.splitlines() if line.startswith("- ")]
    cited = re.findall(r"(\w+) (?:et al\.|and \w+, \d{4})", text)
    assert sorted(listed) == sorted(cited)
    assert ("Bardes" in listed) == (name == "jepa")
