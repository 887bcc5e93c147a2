"""Tests of settings: reading, writing, merging, refusing."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import (
    Compute,
    Encode,
    Output,
    ParticipantSettings,
    Prepare,
    Rank,
    Select,
    read_settings,
    write_settings,
)

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.lists(text, max_size=3).map(tuple)
label = st.builds(
    "{}{}".format, st.sampled_from(["", "sub-"]), st.text("aZ09+", min_size=1)
).filter(lambda text: any(map(str.isalnum, text.removeprefix("sub-"))))
labels = st.lists(label, max_size=3).map(tuple)
positive = st.floats(0, 1e6, exclude_min=True)

selects = st.builds(
    Select,
    participants=labels,
    sessions=labels,
    tasks=labels,
    runs=labels,
    filters=st.dictionaries(text, values, max_size=3),
)
prepares = st.builds(
    Prepare,
    space=st.none() | text,
    tr=st.none() | st.floats(0.1, 10),
    dummy_scans=st.none() | st.integers(0, 50),
)
ranks = st.builds(
    Rank,
    mode=st.sampled_from(["mutual", "representative", "novelty", "random", "uniform", "first"]),
    windows=st.just("all") | st.integers(1, 1000),
    fd_threshold=st.floats(0, 100),
)
encodes = st.builds(Encode, views=st.integers(1, 20))
outputs = st.builds(
    Output,
    save_views=st.booleans(),
    save_prepared=st.booleans(),
    attribution=st.booleans(),
    overwrite=st.sampled_from(["never", "changed", "always"]),
)
computes = st.builds(
    Compute,
    device=text,
    nprocs=st.none() | st.integers(1, 64),
    omp_nthreads=st.none() | st.integers(1, 64),
    mem_gb=st.none() | positive,
    stop_on_first_crash=st.booleans(),
)
any_settings = st.builds(
    ParticipantSettings,
    model=text,
    seed=st.integers(0, 2**63 - 1),
    select=selects,
    prepare=prepares,
    rank=ranks,
    encode=encodes,
    output=outputs,
    compute=computes,
)


def read(folder: Path, content: str, overrides: dict[str, Any] | None = None) -> Any:
    path = folder / "settings.toml"
    path.write_text(content, encoding="utf-8")
    return read_settings(ParticipantSettings, path, overrides or {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@given(any_settings)
def test_written_settings_read_back_the_same(folder: Path, written: ParticipantSettings) -> None:
    back = read(folder, write_settings(written))
    assert back == written
    assert back.fingerprint() == written.fingerprint()


def test_no_file_gives_the_defaults() -> None:
    assert read_settings(ParticipantSettings, None, {}) == ParticipantSettings()


def test_command_line_wins_over_the_file_key_by_key(folder: Path) -> None:
    content = 'seed = 3\n[rank]\nwindows = 4\nmode = "first"\n'
    merged = read(folder, content, {"rank": {"windows": "all"}, "model": "base"})
    assert merged == ParticipantSettings(
        seed=3, model="base", rank=Rank(windows="all", mode="first")
    )


def test_all_faults_are_listed_at_once(folder: Path) -> None:
    content = """
        sede = 1
        seed = "0"
        [prepare]
        tr = 99
        [rank]
        mode = "best"
        windows = 0
        [output]
        save_views = 1
        [compute]
        cores = 4
        nprocs = 2.5
    """
    with pytest.raises(CallRefused) as refused:
        read(folder, content)
    assert refused.value.exit_code == 78
    faults = [
        "sede",
        "seed",
        "prepare.tr",
        "rank.mode",
        "rank.windows",
        "output.save_views",
        "compute.cores",
        "compute.nprocs",
    ]
    assert all(f"{fault}" in refused.value.found for fault in faults)


@pytest.mark.parametrize(
    "content",
    [
        "seed = -1",
        "seed = true",
        "seed = 1.0",
        "model = 1",
        "rank = 3",
        "[select]\nparticipants = '01'",
        "[select]\nparticipants = [1]",
        "[select.filters]\nsession = '1'",
        "[prepare]\ntr = nan",
        "[prepare]\ntr = '2'",
        "[prepare]\ndummy_scans = -1",
        "[rank]\nwindows = 'some'",
        "[rank]\nwindows = true",
        "[rank]\nfd_threshold = -0.1",
        "[rank]\nfd_threshold = nan",
        "[encode]\nviews = 0",
        "[output]\noverwrite = 'sometimes'",
        "[compute]\nmem_gb = 0",
        "[compute]\nmem_gb = inf",
    ],
)
def test_value_of_wrong_type_or_range_is_refused(folder: Path, content: str) -> None:
    key = content.splitlines()[-1].split(" = ")[0]
    with pytest.raises(CallRefused) as refused:
        read(folder, content)
    assert refused.value.reason == "settings-bad"
    assert key in refused.value.found


def test_value_in_place_of_a_table_is_refused_though_the_command_line_has_the_table(
    folder: Path,
) -> None:
    with pytest.raises(CallRefused, match="settings-bad"):
        read(folder, "rank = 3", {"rank": {"mode": "first"}})


@pytest.mark.parametrize("content", [None, "[rank]\nwindows = 3"])
def test_fault_on_the_command_line_is_said_to_be_there(folder: Path, content: str | None) -> None:
    overrides = {"rank": {"windows": 0}}
    with pytest.raises(CallRefused) as refused:
        if content:
            read(folder, content, overrides)
        else:
            read_settings(ParticipantSettings, None, overrides)
    assert (refused.value.reason, refused.value.file) == ("usage", "command line")


@pytest.mark.parametrize("content", [b"seed = ", b"\xff\xfe", b"[rank\n"])
def test_file_that_is_no_toml_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(CallRefused) as refused:
        read_settings(ParticipantSettings, path, {})
    assert (refused.value.reason, refused.value.file) == ("settings-bad", str(path))


@pytest.mark.parametrize("missing", ["absent.toml", "."])
def test_missing_file_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    with pytest.raises(CallRefused) as refused:
        read_settings(ParticipantSettings, tmp_path / missing, {})
    assert (refused.value.reason, refused.value.file) == ("settings-bad", str(tmp_path / missing))


@given(any_settings, any_settings)
def test_fingerprint_tells_what_changes_a_result_and_nothing_else(
    one: ParticipantSettings, other: ParticipantSettings
) -> None:
    same_results = replace(
        one, model=other.model, select=other.select, output=other.output, compute=other.compute
    )
    assert same_results.fingerprint() == one.fingerprint()
    for part in ("seed", "prepare", "rank", "encode"):
        changed = replace(one, **{part: getattr(other, part)})
        alike = getattr(one, part) == getattr(other, part)
        assert (changed.fingerprint() == one.fingerprint()) == alike


def test_whole_numbers_stand_for_decimals(folder: Path) -> None:
    whole, decimal = read(folder, "prepare.tr = 2"), read(folder, "prepare.tr = 2.0")
    assert whole == decimal
    assert whole.fingerprint() == decimal.fingerprint()


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        ParticipantSettings().rank.windows = 3  # type: ignore[misc]


def test_every_default_is_written(folder: Path) -> None:
    plain = write_settings(ParticipantSettings())
    assert plain == tomli_w.dumps(
        {
            "model": "tiny",
            "seed": 0,
            "select": {"participants": [], "sessions": [], "tasks": [], "runs": [], "filters": {}},
            "prepare": {},
            "rank": {"mode": "mutual", "windows": 8, "fd_threshold": 0.5},
            "encode": {"views": 1},
            "output": {
                "save_views": False,
                "save_prepared": False,
                "attribution": False,
                "overwrite": "changed",
            },
            "compute": {"device": "auto", "stop_on_first_crash": False},
        }
    )
