"""A trained package's card tells what it was given, and only that."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from slimbrain_app.model.monitors import Reading
from slimbrain_app.model.packages import Config
from slimbrain_app.model.presets import CONTRACTS, PRESETS
from slimbrain_app.settings import Contract, Objective, PretrainPace, PretrainSettings, Train
from slimbrain_app.training.card import Facts, Source, write_card
from slimbrain_app.training.log import Alarm, Extract, Probe, Start, Step, Validation

CONFIG = Config(
    preset="tiny", trained=True, seed=4, contract=CONTRACTS["tiny"], encoder=PRESETS["tiny"]
)
STEP = Step(
    step=1,
    pass_=1,
    loss=0.5,
    kinds=(0.5, 0.5, 0.5),
    rate=1e-3,
    gradient_norm=1.0,
    momentum=0.996,
    seconds=1.0,
    loader_seconds=0.1,
    windows_per_second=8.0,
)
PROBE = Probe(
    step=5,
    pass_=1,
    name="site",
    metric="accuracy",
    score=0.4321,
    lower=0.3987,
    upper=0.4771,
    chance=0.25,
)
EVENTS = (
    Start(passes=2, steps=9, batch=24, windows_per_run=3, warm_up=1, frames=40, width=192),
    Extract(pass_=1, loss=0.4, validation=0.45, alone=0.5),
    STEP,
    replace(STEP, step=9, loss=0.1234),
    Reading(
        step=9,
        least_spread=0.1,
        median_spread=0.777,
        cell_rank=61.25,
        view_rank=20.5,
        over_constant=0.8,
        over_position=0.9,
        kinds=(0.1, 0.1, 0.1),
        distance=0.01,
    ),
    Validation(
        step=9, pass_=2, loss=0.2468, kinds=(0.1, 0.1, 0.1), over_constant=0.7, over_position=0.95
    ),
    PROBE,
    replace(PROBE, step=9, score=0.6543),
)
FACTS = Facts(
    sources=(
        Source(name="Alpha", people=7, runs=9, hours=1.26, licence="CC0"),
        Source(name="Beta | two", people=3, runs=3, hours=0.5),
    ),
    validation_people=1,
    settings=PretrainSettings(seed=4),
    events=EVENTS,
    licence="CC BY-NC 4.0",
    software={"slimbrain": "1.2.3", "torch": "4.5.6"},
)


def rows_of(card: str) -> list[list[str]]:
    lines = [line for line in card.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line[2:-1].split(" | ")] for line in lines]


def test_data_are_told_by_dataset_and_in_all():
    card = write_card("mine", CONFIG, FACTS)
    assert card.startswith("# mine\n")
    assert "12 runs of 10 people, 1.8 hours" in card
    assert ["Alpha", "7", "9", "1.3", "CC0"] in rows_of(card)
    assert ["Beta \\| two", "3", "3", "0.5", "not stated"] in rows_of(card)
    assert "1 of them was kept out" in card
    assert ["licence of the weights", "CC BY-NC 4.0"] in rows_of(card)
    assert "- torch 4.5.6" in card


def test_end_values_are_the_last_ones():
    rows = rows_of(write_card("mine", CONFIG, FACTS))
    assert ["steps", "9"] in rows and ["loss", "0.1234"] in rows
    assert ["loss on people kept out", "0.2468"] in rows
    assert ["effective rank, cells and windows", "61.2, 20.5"] in rows
    assert ["temporal extractor: what a run tells of its hidden cells", "10.0%"] in rows
    assert [row for row in rows if row[0] == "site"] == [
        ["site", "accuracy", "0.654", "0.399 to 0.477", "0.250"]
    ]


def test_recipe_tells_what_matters_and_what_is_not_default():
    settings = PretrainSettings(
        preset="base",
        seed=9,
        objective=Objective(name="mae"),
        contract=Contract(frame_time=2.0),
        train=Train(clip=0.25),
        pace=PretrainPace(workers=3),
    )
    card = write_card("mine", CONFIG, replace(FACTS, settings=settings))
    rows = dict(row for row in rows_of(card) if len(row) == 2)
    assert rows["`objective.name`"] == "mae" and "reconstruction" in card
    assert rows["`contract.frame_time`"] == "2" and rows["`train.clip`"] == "0.25"
    assert rows["`train.passes`"] == "40" and rows["`train.batch`"] == "24"
    assert rows["`train.windows_per_run`"] == "3" and rows["seed"] == "9"
    assert not [key for key in rows if "pace." in key or "weight_decay" in key]


@pytest.mark.parametrize("alarms", [0, 2])
def test_every_alarm_is_told_or_that_there_was_none(alarms):
    events = [Alarm(step=n, pass_=1, message=f"It fell {n} times.") for n in range(alarms)]
    card = write_card("mine", CONFIG, replace(FACTS, events=(*EVENTS, *events)))
    assert ("No monitor raised an alarm." in card) is (alarms == 0)
    assert all(f"after step {n}: It fell {n} times." in card for n in range(alarms))


def test_what_was_not_measured_is_not_told():
    card = write_card("mine", CONFIG, replace(FACTS, events=()))
    assert "Nothing was tried." in card and "Nothing was logged." in card
    assert "nan" not in card and "None" not in card
    blind = Extract(pass_=1, loss=0.4)
    assert math.isnan(blind.alone)
    assert "nan" not in write_card("mine", CONFIG, replace(FACTS, events=(blind,)))


def test_it_says_what_the_package_is_not_for():
    card = write_card("mine", CONFIG, FACTS)
    assert "## What it is not for" in card and "health" in card and "seen.json" in card
