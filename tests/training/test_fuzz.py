"""Whatever a checkpoint or a log holds: a training goes on or is refused."""

from __future__ import annotations

import io
import pickle
from contextlib import suppress

import pytest
import torch
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.training.checkpoint import read_content, resume, write_checkpoint
from slimbrain_app.training.log import read_log
from slimbrain_app.training.manifest import read_manifest


@pytest.fixture
def state(drill):
    return drill.make_state(drill.Drill())


def test_any_checkpoint_is_gone_on_from_or_refused(fuzz, damage, drill, state, tmp_path):
    file = tmp_path / "state.pt"
    write_checkpoint(file, state, drill.IDENTITY)
    whole = file.read_bytes()
    assert resume(file, state, drill.IDENTITY)

    def holds(content):
        file.write_bytes(content)
        with suppress(CallRefused):
            resume(file, state, drill.IDENTITY)

    fuzz(holds, damage(whole) | damage(whole, within=400) | st.binary(max_size=80))


ODD = st.sampled_from([None, 1.5, float("nan"), "x", [], {}, -1, torch.zeros(2), {"state": 3}])
KEYS = ["version", "settings", "corpus", "done", "objective", "optimiser", "scaler", "observer"]


def test_any_content_of_a_checkpoint_is_gone_on_from_or_refused(fuzz, drill, state, tmp_path):
    file = tmp_path / "state.pt"
    write_checkpoint(file, state, drill.IDENTITY)
    whole = torch.load(file, weights_only=True)

    def holds(changes, left_out):
        content = {key: value for key, value in {**whole, **changes}.items() if key != left_out}
        torch.save(content, file)
        with suppress(CallRefused):
            resume(file, state, drill.IDENTITY)

    changes = st.dictionaries(st.sampled_from(KEYS), ODD, max_size=2)
    fuzz(holds, changes, st.none() | st.sampled_from(KEYS), examples=40)


def test_any_log_and_corpus_are_read_or_refused(fuzz, odd_json, tmp_path):
    file = tmp_path / "training.jsonl"
    fields = dict.fromkeys(("event", "step", "pass", "loss", "seconds", "rows", "refusals"), 1)

    def holds(line, other):
        file.write_bytes(line + b"\n" + other + b"\n")
        with suppress(CallRefused):
            read_log(file)
        with suppress(CallRefused):
            read_manifest(file)

    lines = odd_json({**fields, "event": "step"}) | odd_json(fields)
    fuzz(holds, lines, lines | st.just(b""), examples=40)


@pytest.mark.parametrize("packed", [True, False])
def test_a_pickle_in_a_checkpoint_is_refused_unopened(packed, tmp_path):
    trace, file = tmp_path / "trace", tmp_path / "state.pt"

    class Hostile:
        def __reduce__(self):
            return trace.write_text, ("it ran",)

    buffer = io.BytesIO()
    if packed:
        torch.save({"version": 1, "network": Hostile()}, buffer)
    else:
        pickle.dump({"version": 1, "network": Hostile()}, buffer)
    file.write_bytes(buffer.getvalue())
    with pytest.raises(CallRefused, match="checkpoint-bad"):
        read_content(file)
    assert not trace.exists()
