"""Commands that enter an image, without an engine; `tests/containers` has them carried out."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.cluster.containers import Container, enter
from slimbrain_app.errors import CallRefused

ENGINES = ("docker", "podman", "apptainer")
DATA, OUT = Path("/data/fmriprep"), Path("/data/out")
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0\n\r/"), min_size=1, max_size=20)


def make(engine: str, **options: object) -> Container:
    return Container(engine=engine, image="slimbrain:1", **options)


def list_mounts(words: list[str]) -> list[tuple[str, bool]]:
    """Return each place that is mounted, under its own path, and whether it can be written."""
    mounts = []
    for word in words:
        if word.startswith("--mount="):
            (kind, source, destination, *others), *_ = csv.reader([word.removeprefix("--mount=")])
            assert kind == "type=bind"
            assert source.removeprefix("source=") == destination.removeprefix("destination=")
            mounts.append((source.removeprefix("source="), others != ["ro"]))
    return mounts


@pytest.mark.parametrize("engine", ENGINES)
def test_an_image_sees_inputs_to_read_and_outputs_to_write(engine):
    words = enter(make(engine), ["in", "a b"], [DATA, Path("/x.toml")], [OUT])
    assert set(list_mounts(words)) == {(str(DATA), False), ("/x.toml", False), (str(OUT), True)}
    assert words[words.index("slimbrain:1") + 1 :][-2:] == ["in", "a b"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_image_has_no_network_no_home_and_no_more_rights_than_the_user(engine):
    words = set(enter(make(engine), [], [DATA], [OUT]))
    if engine == "apptainer":
        assert words >= {"--containall", "--no-home", "--net", "--network=none"}
    else:
        assert words >= {"--network=none", "--cap-drop=ALL", "--read-only"}
        assert words >= {"--security-opt=no-new-privileges", f"--user={os.getuid()}:{os.getgid()}"}


@pytest.mark.parametrize(
    ("engine", "word"),
    [("docker", "--gpus=all"), ("podman", "--device=nvidia.com/gpu=all"), ("apptainer", "--nv")],
)
def test_a_gpu_is_passed_on_where_one_is_wanted(engine, word):
    assert word in enter(make(engine, gpu=True), [], [DATA], [OUT])
    assert word not in enter(make(engine), [], [DATA], [OUT])


@pytest.mark.parametrize(("user", "kept"), [(1000, True), (0, False)])
def test_podman_keeps_the_number_of_a_user_other_than_root(monkeypatch, user, kept):
    monkeypatch.setattr(os, "getuid", lambda: user)
    assert ("--userns=keep-id" in enter(make("podman"), [], [], [])) == kept
    assert "--userns=keep-id" not in enter(make("docker"), [], [], [])


def test_a_training_keeps_network_and_environment():
    words = enter(make("apptainer", network=True), ["in"], [DATA], [OUT])
    assert words[:3] == ["apptainer", "exec", "--no-eval"]
    assert not {"--containall", "--net", "--network=none"} & set(words)
    assert "--network=host" in enter(make("docker", network=True), ["in"], [DATA], [OUT])


def test_a_folder_to_write_lies_on_the_one_to_read_that_it_is_in():
    inside = DATA / "derivatives/slimbrain"
    words = enter(make("docker"), [], [inside / "logs/x.toml", DATA], [inside])
    assert list_mounts(words) == [
        (str(DATA), False),
        (str(inside), True),
        (f"{inside}/logs/x.toml", False),
    ]


def test_what_a_folder_brings_along_is_not_mounted_again():
    read, written = [DATA, DATA / "sub-01", OUT, OUT / "in/it"], [OUT, OUT / "work"]
    words = enter(make("docker"), [], read, written)
    assert list_mounts(words) == [(str(DATA), False), (str(OUT), True), (f"{OUT}/in/it", False)]


@given(NAMES)
def test_a_path_is_mounted_whatever_its_letters(name):
    path = Path("/data") / name
    assert list_mounts(enter(make("docker"), [], [path], [])) == [(str(path), False)]


def test_a_path_with_a_line_break_is_refused():
    with pytest.raises(CallRefused) as refused:
        enter(make("docker"), [], [Path("/data/a\nb")], [])
    assert refused.value.reason == "usage"
    assert "\n" not in str(refused.value)


def test_variables_are_set():
    words = enter(make("podman"), [], [], [], {"TMPDIR": "/scratch"})
    assert "--env=TMPDIR=/scratch" in words
