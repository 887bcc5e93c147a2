"""Tests of refusals, reason codes and exit codes."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import slimbrain_app
from slimbrain_app.errors import (
    REASONS,
    CallRefused,
    Exit,
    RunRefused,
    Scope,
    SlimBrainError,
    worst,
)
from slimbrain_app.settings import ParticipantSettings, read_settings

RUN_CODES = [Exit.TRY_AGAIN, Exit.CANNOT_WRITE, Exit.FAULT, Exit.UNAVAILABLE, Exit.DATA]

refusals = st.builds(
    lambda kind, reason, file, **parts: kind(reason, file=file, **parts),
    st.sampled_from([RunRefused, CallRefused]),
    st.sampled_from(sorted(REASONS)),
    st.none() | st.text() | st.builds(Path, st.just("sub-01/func")),
    expected=st.text(),
    found=st.text(),
    advice=st.text(),
)


@given(refusals)
def test_refusal_survives_pickling_and_copying(error: SlimBrainError) -> None:
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert (twin.reason, twin.file) == (error.reason, error.file)
        assert (twin.expected, twin.found, twin.advice) == (
            error.expected,
            error.found,
            error.advice,
        )
        assert twin.exit_code == error.exit_code


def test_refusal_comes_back_whole_from_another_process(tmp_path: Path) -> None:
    missing = tmp_path / "settings.toml"
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        error = pool.submit(read_settings, ParticipantSettings, missing, {}).exception()
    with pytest.raises(CallRefused) as here:
        read_settings(ParticipantSettings, missing, {})
    assert isinstance(error, CallRefused)
    assert str(error) == str(here.value)


@given(refusals)
def test_message_holds_all_four_parts_and_the_code(error: SlimBrainError) -> None:
    parts = (error.reason, error.file or "", error.expected, error.found, error.advice)
    assert all(part in str(error) for part in parts)


@given(st.lists(st.sampled_from([Exit.DONE, *RUN_CODES])))
def test_worst_code_goes_first(codes: list[Exit]) -> None:
    expected = next((code for code in (75, 73, 70, 69, 65) if code in codes), 0)
    assert worst(codes) == expected


@given(st.lists(st.sampled_from(Exit)))
def test_no_failure_ends_as_success(codes: list[Exit]) -> None:
    assert (worst(codes) == 0) == all(code == 0 for code in codes)
    assert worst(codes) in (0, *codes)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("too-short", 65),
        ("still-written", 75),
        ("locked", 75),
        ("no-template", 69),
        ("internal", 70),
        ("no-runs", 66),
        ("usage", 64),
        ("disk-full", 73),
        ("not-writable", 73),
        ("device-missing", 69),
        ("stopped", 75),
        ("package-bad", 78),
    ],
)
def test_exit_codes_are_the_documented_ones(reason: str, code: int) -> None:
    assert REASONS[reason].exit_code == code


def test_only_warnings_end_with_zero() -> None:
    for reason in REASONS.values():
        assert (reason.exit_code == Exit.DONE) == (reason.scope is Scope.WARNING)


def codes_in_source(*names: str) -> Iterator[tuple[str, str]]:
    """Yield file and code wherever the package calls one of ``names`` with a literal code."""
    root = Path(slimbrain_app.__file__).parent
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in names:
                named = [key.value for key in node.keywords if key.arg == "code"]
                for code in [*node.args[:1], *named]:
                    if isinstance(code, ast.Constant) and isinstance(code.value, str):
                        yield path.name, code.value


@pytest.mark.parametrize(
    ("name", "scope"),
    [("RunRefused", Scope.RUN), ("CallRefused", Scope.CALL), ("Notice", Scope.WARNING)],
)
def test_every_code_in_the_source_is_known_and_used_in_its_scope(name: str, scope: Scope) -> None:
    found = list(codes_in_source(name))
    assert found
    for file, code in found:
        # The first warns or refuses by degree; the second ends a run, or a training.
        both = code in ("low-coverage", "out-of-memory")
        assert both or REASONS[code].scope is scope, (file, code)
