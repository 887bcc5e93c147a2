"""Whatever a settings file holds: settings or a refusal."""

from __future__ import annotations

from contextlib import suppress

import pytest
import tomli_w
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import (
    EvaluateSettings,
    FinetuneSettings,
    ParticipantSettings,
    PretrainSettings,
    TabulateSettings,
    read_settings,
    write_settings,
)

KINDS = [
    ParticipantSettings,
    PretrainSettings,
    EvaluateSettings,
    FinetuneSettings,
    TabulateSettings,
]
TEXTS = st.text(max_size=8) | st.sampled_from(["../x", "/etc", "a\0b", "-x", "x" * 5000, "a\nb"])
VALUES = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.dates() | st.datetimes() | TEXTS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(TEXTS, below, max_size=3),
    max_leaves=5,
)
ODD = [
    b"x = " + b"[" * 10_000,
    b"x = " + b"[" * 10_000 + b"]" * 10_000,
    b"x = " + b"{a=" * 10_000,
    b"seed = " + b"9" * 5000,
    b"seed = 0x" + b"f" * 5000,
    b"[prepare]\ntr = 1e999",
    b"[prepare]\ntr = nan",
    b"\xef\xbb\xbfseed = 1",
    "seed = 1".encode("utf-16"),
    b"a." * 2000 + b"b = 1",
    b"seed = 1\nseed = 2",
]


@pytest.mark.parametrize("kind", KINDS)
def test_any_settings_file_is_read_or_refused(fuzz, damage, tmp_path, kind):
    file = tmp_path / "slimbrain.toml"
    whole = write_settings(kind()).encode()
    tables = [key for key in ("select", "prepare", "rank", "tune") if hasattr(kind(), key)]
    keys = ["participants", "filters", "tr", "mode", "windows", "space", "x"]
    table = st.dictionaries(st.sampled_from(keys) | TEXTS, VALUES, max_size=3)
    documents = st.dictionaries(st.sampled_from([*tables, "seed", "model"]), table | VALUES).map(
        lambda content: tomli_w.dumps(content).encode("utf-8", "surrogatepass")
    )

    def holds(content):
        file.write_bytes(content)
        with suppress(CallRefused):
            settings = read_settings(kind, file, {})
            assert read_settings(kind, None, {}) == kind()
            file.write_text(write_settings(settings))

    anything = documents | damage(whole) | st.sampled_from(ODD) | st.binary(max_size=60)
    fuzz(holds, anything, examples=25)


@pytest.mark.parametrize("label", ["../x", "/x", "a\0", "a/b", "", "..", "-x", "a" * 300, "a b"])
@pytest.mark.parametrize("key", ["participants", "sessions", "tasks", "runs"])
def test_no_label_is_a_path(label, key):
    with pytest.raises(CallRefused, match="usage"):
        read_settings(ParticipantSettings, None, {"select": {key: [label]}})


@pytest.mark.parametrize("kind", [PretrainSettings, FinetuneSettings])
@pytest.mark.parametrize(
    "name", ["../x", "/x", "a\0", "a/b", "", "..", ".", "-x", "a" * 300, "a\n"]
)
def test_no_name_of_a_package_is_a_path(kind, name):
    with pytest.raises(CallRefused, match="usage"):
        read_settings(kind, None, {"package_name": name})
