"""Fixtures that several rooms share."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

# Threads of BLAS and torch would wait for those of the tests beside, and use up their processors.
# What is started as a process of its own has threads as users have them.
with patch.dict(os.environ, OMP_NUM_THREADS="1"):
    import scipy.linalg  # noqa: F401
    import torch  # noqa: F401

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning

# A test tells what is right, not how fast the machine is.
settings.register_profile("calm", deadline=None)
settings.load_profile("calm")

# Values that JSON can hold and readers stumble over.
_DEEP = "[" * 10_000 + "]" * 10_000
_ODD = [_DEEP, "9" * 5000, "1" + "0" * 400, "1e999", "-0.0", "NaN", "-Infinity"]
_ODD += ['"\\ud800"', '"\\u0000"', '"http://["', json.dumps("x" * 5000)]


@pytest.fixture(
    params=[pytest.param(1, id="few"), pytest.param(25, id="many", marks=pytest.mark.slow)]
)
def fuzz(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Hold a property for examples of strategies, always the same ones; for many if slow."""

    def fuzz(holds: Callable[..., object], *strategies: Any, examples: int = 40) -> None:
        checked = settings(
            max_examples=examples * request.param,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # To shrink what fails would take minutes.
            deadline=60_000,  # ms: nothing may hang, however busy the machine.
            suppress_health_check=list(HealthCheck),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HypothesisWarning)  # Of examples too large to show.
            checked(given(*strategies)(holds))()

    return fuzz


@pytest.fixture(scope="session")
def odd_json() -> Callable[..., st.SearchStrategy[bytes]]:
    """Bytes of JSON objects of which some keys hold anything, in any encoding, or damaged."""
    plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    tables = st.recursive(
        plain,
        lambda below: (
            st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3)
        ),
        max_leaves=5,
    )
    values = tables.map(json.dumps) | st.sampled_from(_ODD)

    def odd_json(whole: Mapping[str, Any]) -> st.SearchStrategy[bytes]:
        keys = st.sampled_from([*whole, "anything"])
        replaced = st.lists(st.tuples(keys, values), min_size=1, max_size=3)
        documents = st.tuples(replaced, st.booleans()).map(lambda drawn: _write(whole, *drawn))
        encoded = st.tuples(
            documents | values, st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32-be"])
        ).map(lambda drawn: drawn[0].encode(drawn[1]))
        return encoded | _damage(json.dumps(whole).encode()) | st.binary(max_size=20)

    return odd_json


def _write(whole: Mapping[str, Any], replaced: list[tuple[str, str]], twice: bool) -> str:
    """Write JSON by hand, with the values replaced as they are written; or twice under one key."""
    known = {key for key, _ in replaced} if not twice else set()
    members = [(key, json.dumps(value)) for key, value in whole.items() if key not in known]
    return "{" + ", ".join(f"{json.dumps(key)}: {text}" for key, text in members + replaced) + "}"


@pytest.fixture(scope="session")
def damage() -> Callable[..., st.SearchStrategy[bytes]]:
    """Bytes like the given ones, of which some are others, cut out or put in."""
    return _damage


def _damage(whole: bytes, within: int | None = None) -> st.SearchStrategy[bytes]:
    places = st.integers(0, min(within or len(whole), len(whole)) - 1)
    edits = st.tuples(places, st.sampled_from([0, 1, 1, 1, 8]), st.binary(max_size=8))

    def change(drawn: list[tuple[int, int, bytes]]) -> bytes:
        content = bytearray(whole)
        for place, length, new in drawn:
            content[place : place + length] = new[:length] if len(new) >= length else new
        return bytes(content)

    return st.lists(edits, min_size=1, max_size=4).map(change)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with small example inputs, where there is one."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SLIMBRAIN_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip("no folder of example inputs; set SLIMBRAIN_SHARED_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Derivatives of two simulated people, one coarse run each; not to be changed."""
    from slimbrain_app.simulation import SimulationSettings, simulate_dataset

    folder = tmp_path_factory.mktemp("simulated") / "fmriprep"
    settings = SimulationSettings(participants=2, volumes=40, voxel_size=6.0)
    simulate_dataset(folder, settings)
    return folder


@pytest.fixture(scope="session")
def headed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped package with heads of random weights: a number, two classes, three classes."""
    import numpy as np

    from slimbrain_app.model.package_heads import Heads, Reference
    from slimbrain_app.model.packages import (
        load_encoder,
        load_package,
        load_readout,
        save_package,
    )
    from slimbrain_app.records import Calibration, Head

    tiny = load_package("tiny")
    width = tiny.config.encoder.embedding_width
    draw = np.random.default_rng(0)
    quantiles = tuple(np.linspace(0, 1, 101))
    heads = (
        Head(outcome="age", kind="number", people=30, units="years", margin=9.5),
        Head(
            outcome="sex",
            kind="class",
            people=30,
            classes=("F", "M"),
            levels={"F": "female", "M": "male"},
            calibration=Calibration(slope=0.8, intercept=0.1),
            quantiles=quantiles,
        ),
        Head(outcome="site", kind="class", people=30, classes=("a", "b", "c")),
    )
    shapes = {head.outcome: (head.outputs, width) for head in heads}
    folder = tmp_path_factory.mktemp("packages") / "headed"
    save_package(
        folder,
        tiny.config,
        load_encoder(tiny),
        readout=load_readout(tiny),
        heads=Heads(
            heads=heads,
            weights={name: 0.2 * draw.standard_normal(shape) for name, shape in shapes.items()},
            biases={name: draw.standard_normal(shape[0]) for name, shape in shapes.items()},
            reference=Reference(np.zeros(width), np.eye(width), 1e6),
        ),
        card="# headed",
    )
    return folder


@pytest.fixture(scope="session")
def small_package(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A package that embeds a window in a blink."""
    from dataclasses import replace

    from slimbrain_app.model.encoder import Encoder
    from slimbrain_app.model.packages import Config, save_package
    from slimbrain_app.model.presets import CONTRACTS, PRESETS

    sizes = replace(
        PRESETS["tiny"],
        patch=(4, 16, 16, 16),
        width=8,
        depths=(1, 1),
        mask_unit=(2, 2, 2, 2),
        unit_attention=(True, False),
    )
    config = Config(preset="tiny", trained=True, seed=0, contract=CONTRACTS["tiny"], encoder=sizes)
    folder = tmp_path_factory.mktemp("models") / "small"
    return save_package(folder, config, Encoder(sizes, seed=0), card="# small")
