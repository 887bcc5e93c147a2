"""The log of a training: what is written is read, and nothing stands there twice."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.masking import KINDS
from slimbrain_app.model.monitors import Reading
from slimbrain_app.training.log import (
    Alarm,
    Checkpoint,
    End,
    Event,
    Extract,
    JsonLines,
    Probe,
    Resume,
    Start,
    Step,
    Validation,
    cut_log,
    decode,
    encode,
    open_log,
    pick,
    read_log,
    tabulate,
)

START = Start(passes=2, steps=6, batch=8, windows_per_run=4, warm_up=1, frames=40, width=192)


def make_step(step: int, loss: float = 0.5) -> Step:
    return Step(
        step=step,
        pass_=1 + (step - 1) // 3,
        loss=loss,
        kinds=(0.1, 0.2, 0.3),
        rate=5e-4,
        gradient_norm=1.5,
        momentum=0.996,
        seconds=2.0,
        loader_seconds=0.5,
        windows_per_second=4.0,
    )


def make_reading(step: int) -> Reading:
    return Reading(
        step=step,
        least_spread=0.1,
        median_spread=0.9,
        cell_rank=60.0,
        view_rank=5.0,
        over_constant=0.5,
        over_position=0.8,
        kinds=(0.1, 0.2, 0.3),
        distance=1.0,
    )


EVENTS: tuple[Event, ...] = (
    START,
    Extract(pass_=1, loss=0.8, validation=0.9),
    *(make_step(step) for step in (1, 2, 3)),
    make_reading(3),
    Alarm(step=3, pass_=1, message="Ωeak “spread”\nin two lines"),
    Validation(
        step=3, pass_=1, loss=0.5, kinds=(0.1, 0.2, 0.3), over_constant=0.6, over_position=0.9
    ),
    Probe(
        step=3,
        pass_=1,
        name="site",
        metric="AUROC",
        score=0.6,
        lower=0.5,
        upper=0.7,
        chance=0.25,
    ),
    Checkpoint(step=3, pass_=1),
    End(step=3, pass_=1, finished=False, reason="stopped by a signal"),
    Resume(step=3, pass_=1),
    *(make_step(step) for step in (4, 5, 6)),
    End(step=6, pass_=2, finished=True),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints" / "training.jsonl"


def write(path: Path, events: tuple[Event, ...], step: int | None = None) -> None:
    with open_log(path, step, tensorboard=False) as log:
        for event in events:
            log(event)


def test_every_kind_of_event_is_read_as_it_was_written(path: Path) -> None:
    write(path, EVENTS)
    assert read_log(path) == EVENTS


def test_a_line_is_there_before_the_next_event(path: Path) -> None:
    with open_log(path, None, tensorboard=False) as log:
        for count, event in enumerate(EVENTS, 1):
            log(event)
            assert len(path.read_text().splitlines()) == count


@given(st.floats(), st.tuples(st.floats(), st.floats(), st.floats()))
def test_lines_are_strict_json_and_numbers_that_are_not_finite_are_null(loss, kinds) -> None:
    event = Validation(
        step=1, pass_=1, loss=loss, kinds=kinds, over_constant=1.0, over_position=math.inf
    )
    line = json.loads(encode(event), parse_constant=pytest.fail)
    assert line["over_position"] is None
    for number, written in zip((loss, *kinds), (line["loss"], *line["kinds"]), strict=True):
        assert written == (number if math.isfinite(number) else None)
    back = decode(encode(event))
    assert math.isfinite(back.loss) == math.isfinite(loss)
    assert math.isnan(back.over_position)


@given(st.integers(0, len("\n".join(map(encode, EVENTS)).encode())))
def test_a_log_torn_at_any_byte_loses_its_last_line_at_most(tmp_path_factory, size: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "training.jsonl"
    whole = "".join(f"{encode(event)}\n" for event in EVENTS).encode()
    path.write_bytes(whole[:size])
    complete = whole[:size].count(b"\n")
    read = read_log(path)
    assert read == EVENTS[: len(read)]
    assert len(read) in (complete, complete + 1)
    write(path, (Resume(step=9, pass_=2),), step=9)
    assert read_log(path) == (*read, Resume(step=9, pass_=2))


def test_bytes_that_a_crash_of_the_machine_left_are_dropped(path: Path) -> None:
    write(path, EVENTS)
    with path.open("ab") as stream:
        stream.write(b"\0\xff\0")
    assert read_log(path) == EVENTS


@pytest.mark.parametrize("step", range(7))
def test_after_a_resume_no_step_stands_there_twice(path: Path, step: int) -> None:
    write(path, EVENTS)
    write(path, (Resume(step=step, pass_=1), *map(make_step, range(step + 1, 7))), step=step)
    assert [event.step for event in pick(read_log(path), Step)] == [1, 2, 3, 4, 5, 6]
    assert pick(read_log(path), Start) == [START]
    assert len(pick(read_log(path), Extract)) == 1
    assert len(pick(read_log(path), Alarm)) == (step >= 3)


def test_a_new_beginning_leaves_nothing_of_the_old_log(path: Path) -> None:
    write(path, EVENTS)
    write(path, (START,), step=None)
    assert read_log(path) == (START,)


def test_a_cut_that_fails_leaves_the_log_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    write(path, EVENTS)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CallRefused) as refusal:
        cut_log(path, 3)
    assert refusal.value.reason == "disk-full"
    assert read_log(path) == EVENTS
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", ["{", '{"event": "party"}', '{"event": "end", "step": 1}', "[]"])
def test_damage_within_a_log_is_refused_with_its_line(path: Path, damage: str) -> None:
    write(path, EVENTS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:4], damage, *lines[5:]]) + "\n")
    for read in (read_log, lambda path: cut_log(path, 3)):
        with pytest.raises(CallRefused, match="in line 5") as refusal:
            read(path)
        assert refusal.value.reason == "log-bad"


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CallRefused) as refusal:
        JsonLines(tmp_path / "checkpoints" / "training.jsonl").write(START)
    assert refusal.value.reason == "not-writable"


def test_tables_hold_one_kind_of_event_with_all_its_numbers(path: Path) -> None:
    write(path, EVENTS)
    table = tabulate(read_log(path), Step)
    assert list(table["pass"]) == [1, 1, 1, 2, 2, 2]
    assert list(table["step"]) == [1, 2, 3, 4, 5, 6]
    plain = pd.read_json(path, lines=True, precise_float=True)
    steps = plain[plain["event"] == "step"]
    for column in table:
        assert [tuple(v) if isinstance(v, list) else v for v in steps[column]] == list(
            table[column]
        )


def test_tensorboard_gets_the_same_numbers(path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_log(path, None, tensorboard=True) as log:
        for event in EVENTS:
            log(event)
    board = accumulator.EventAccumulator(str(path.parent / "tensorboard"))
    board.Reload()
    scalars = {
        tag: [(item.step, item.value) for item in board.Scalars(tag)]
        for tag in board.Tags()["scalars"]
    }
    assert scalars["step/loss"] == [(step, pytest.approx(0.5)) for step in range(1, 7)]
    for kind, loss in zip(KINDS, (0.1, 0.2, 0.3), strict=True):
        assert scalars[f"validation/kinds/{kind}"] == [(3, pytest.approx(loss))]
    assert scalars["probe_site/upper"] == [(3, pytest.approx(0.7))]
    assert scalars["extract/validation"] == [(1, pytest.approx(0.9))]
    assert "alarm/text_summary" in board.Tags()["tensors"]


def test_tensorboard_hides_steps_that_come_again(path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for step, loss in ((None, 1.0), (3, 2.0)):
        with open_log(path, step, tensorboard=True) as log:
            for number in range((step or 0) + 1, 7):
                log(make_step(number, loss))
    board = accumulator.EventAccumulator(str(path.parent / "tensorboard"))
    board.Reload()
    losses = [(item.step, item.value) for item in board.Scalars("step/loss")]
    assert losses == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 2.0)]


def test_tensorboard_that_is_not_installed_is_refused_with_its_extra(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with (
        pytest.raises(CallRefused, match=r"slimbrain\[tensorboard\]") as refusal,
        open_log(path, None, tensorboard=True),
    ):
        pass
    assert refusal.value.reason == "extra-missing"
