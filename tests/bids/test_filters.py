import json

import pytest

from slimbrain_app.bids.entities import parse_name
from slimbrain_app.bids.filters import build_filter, list_values, read_filter_file
from slimbrain_app.errors import CallRefused
from slimbrain_app.settings import Select

NAME = parse_name("sub-01_ses-a_task-rest_acq-x_run-02_space-T1w_desc-preproc_bold.nii.gz")


def admits(select):
    wanted = build_filter(select)
    return wanted.admits_run(NAME) and wanted.admits_bold(NAME) and wanted.admits_session("a")


@pytest.mark.parametrize(
    ("select", "admitted"),
    [
        (Select(), True),
        (Select(sessions=("a",)), True),
        (Select(sessions=("ses-a", "b")), True),
        (Select(sessions=("b",)), False),
        (Select(tasks=("task-rest",)), True),
        (Select(tasks=("rest",), sessions=("b",)), False),
        (Select(runs=("2",)), True),
        (Select(runs=("run-002",)), True),
        (Select(runs=("3",)), False),
        (Select(filters={"acquisition": ("x", "y")}), True),
        (Select(filters={"acq": ("y",)}), False),
        (Select(filters={"acquisition": ()}), False),
        (Select(filters={"direction": ()}), True),
        (Select(filters={"direction": ("*",)}), False),
        (Select(filters={"acquisition": ("*",)}), True),
        (Select(filters={"space": ("T1w",), "description": ("preproc",)}), True),
        (Select(filters={"space": ("MNI152NLin2009cAsym",)}), False),
        (Select(filters={"datatype": ("func",), "suffix": ("bold",)}), True),
        (Select(filters={"suffix": ("cbv",)}), False),
        (Select(sessions=("a",), filters={"session": ("b",)}), False),
    ],
)
def test_all_conditions_must_hold(select, admitted):
    assert admits(select) is admitted


def test_an_unknown_entity_is_refused_with_the_nearest():
    with pytest.raises(CallRefused, match=r"\[usage\].*acquisition"):
        build_filter(Select(filters={"aquisition": ("x",)}))


def write(tmp_path, content):
    path = tmp_path / "filter.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_filter_file_is_read_as_fmriprep_reads_it(tmp_path):
    bold = {"session": "1", "acquisition": ["a", "b"], "direction": None, "run": 1, "echo": "*"}
    filters, notices = read_filter_file(write(tmp_path, {"bold": bold}))
    assert notices == ()
    assert filters == {
        "session": ("1",),
        "acquisition": ("a", "b"),
        "direction": (),
        "run": ("1",),
        "echo": ("*",),
    }


def test_other_blocks_give_a_notice(tmp_path):
    filters, notices = read_filter_file(write(tmp_path, {"t1w": {"session": "1"}, "fmap": {}}))
    assert filters == {}
    assert [(notice.code, "t1w" in notice.message) for notice in notices] == [
        ("filter-ignored", True),
        ("filter-ignored", False),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [],
        {"bold": []},
        {"bold": {"task": True}},
        {"bold": {"task": []}},
        {"bold": {"task": ["rest", None]}},
        {"bold": {"task": {"not": "rest"}}},
        {"bold": {"taks": "rest"}},
    ],
)
def test_another_form_is_refused_and_an_example_shown(tmp_path, content):
    with pytest.raises(CallRefused) as caught:
        read_filter_file(write(tmp_path, content))
    assert caught.value.reason == "usage"
    assert '"bold"' in caught.value.advice or "task" in caught.value.advice


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CallRefused, match="No such file"):
        read_filter_file(tmp_path / "nothing.json")


def test_values_are_listed_once_with_those_that_lack_it():
    assert list_values("run", [NAME, NAME, parse_name("sub-01_task-a_bold.nii.gz")]) == "(none), 02"
