import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.bids.entities import parse_name
from slimbrain_app.bids.headers import Header
from slimbrain_app.bids.metadata import (
    Statement,
    first_timing,
    inherited_sidecars,
    own_sidecar,
    raw_sidecars,
    read_sidecar,
    read_timing,
    relative,
    resolve_repetition_time,
)
from slimbrain_app.errors import RunRefused

BOLD = "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_space-T1w_desc-preproc_bold.nii.gz"


def header(step, unit="sec"):
    return Header((4, 4, 4, 9), np.eye(4), step, unit)


def stated(seconds):
    return Statement(seconds, "sidecar", "bold.json")


def resolve(forced=None, sidecar=None, head=None):
    statement = None if sidecar is None else stated(sidecar)
    tr, notices = resolve_repetition_time(forced, statement, head or header(0), "bold.nii.gz")
    return tr.seconds, tr.origin, [notice.code for notice in notices]


def reason_of(function, *arguments, **named):
    with pytest.raises(RunRefused) as caught:
        function(*arguments, **named)
    return caught.value.reason


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_tr_sources_in_order():
    assert resolve(2.0, 2.0, header(2)) == (2.0, "command line", [])
    assert resolve(None, 2.0, header(2)) == (2.0, "sidecar", [])
    assert resolve(None, None, header(2)) == (2.0, "header", ["tr-from-header"])
    assert reason_of(resolve, None, None, header(0)) == "no-tr"


def test_header_of_one_second_yields():
    assert resolve(None, 2.0, header(1)) == (2.0, "sidecar", ["tr-disagrees"])


def test_header_of_zero_yields():
    assert resolve(None, 2.0, header(0)) == (2.0, "sidecar", ["tr-disagrees"])


@pytest.mark.parametrize("unit", ["sec", "unknown"])
def test_thousand_seconds_is_refused_or_resolved(unit):
    assert reason_of(resolve, None, None, header(2000, unit)) == "tr-range"
    assert resolve(None, 2.0, header(2000, unit))[:2] == (2.0, "sidecar")
    assert resolve(None, 2000, header(2000, unit))[:2] == (2.0, "sidecar")
    assert resolve(2.0, 2000, header(2)) == (2.0, "command line", [])


def test_a_guess_of_milliseconds_is_told():
    with pytest.raises(RunRefused, match=r"2000 ms.*--tr 2\."):
        resolve(None, 2000, header(0))

    with pytest.raises(RunRefused, match=r"2000 ms.*--tr 2\."):
        resolve(None, None, header(2000))
    assert reason_of(resolve, None, None, header(15)) == "tr-range"


def test_milliseconds_of_the_header_are_read_as_such():
    assert resolve(None, None, header(2000, "msec"))[:2] == (2.0, "header")
    assert resolve(None, 2.0, header(2000, "msec")) == (2.0, "sidecar", [])


def test_message_quotes_raw_header():
    _, notices = resolve_repetition_time(None, stated(2.0), header(1500, "msec"), "bold.nii.gz")
    assert "pixdim[4] = 1500 with unit msec" in notices[0].message
    assert "2 s" in notices[0].message


@given(st.floats(0.001, 1000))
def test_no_repetition_time_outside_the_range_is_taken(seconds):
    try:
        taken = resolve(None, seconds, header(seconds))[0]
    except RunRefused as refusal:
        assert refusal.reason == "tr-range"
    else:
        assert 0.1 <= taken <= 10


@given(st.floats(0.1, 10), st.floats(0.9, 1.1))
def test_contradictions_are_judged_at_one_percent(seconds, factor):
    if abs(factor - 1) > 0.0101:
        assert reason_of(resolve, seconds, seconds * factor) == "tr-conflict"
    elif abs(factor - 1) < 0.0099:
        assert resolve(seconds, seconds * factor)[0] == seconds


@pytest.mark.parametrize("content", ["", "{", "[1]", '"text"', "\x00", '{"RepetitionTime": 2.0'])
def test_a_broken_sidecar_is_refused(tmp_path, content):
    path = write(tmp_path, "bold.json", content)
    assert reason_of(read_sidecar, path) == "bad-sidecar"


def test_the_place_of_the_fault_is_quoted(tmp_path):
    path = write(tmp_path, "bold.json", '{"A": 1,\n "B": }')
    with pytest.raises(RunRefused, match="line 2 column 7"):
        read_sidecar(path)


@pytest.mark.parametrize("value", ["2 s", None, True, [2.0], float("nan")])
def test_a_repetition_time_that_is_no_number_is_refused(tmp_path, value):
    path = write(tmp_path, "bold.json", {"RepetitionTime": value})
    assert reason_of(read_timing, path, "sidecar", "bold.json") == "bad-sidecar"


def test_a_dangling_sidecar_is_missing_content(tmp_path):
    path = tmp_path / "bold.json"
    path.symlink_to("nowhere")
    assert reason_of(read_sidecar, path) == "missing-content"


def timing(tmp_path, **table):
    return read_timing(write(tmp_path, "bold.json", table), "sidecar", "bold.json")


def test_regular_volume_timing_stands_for_the_repetition_time(tmp_path):
    assert timing(tmp_path, VolumeTiming=[0, 2.0, 4.01, 6]).seconds == 2


@pytest.mark.parametrize("times", [[0, 2, 6, 8], [0, 2, 2, 4], [0, 2, 4.1]])
def test_irregular_volume_timing_is_refused(tmp_path, times):
    assert reason_of(timing, tmp_path, VolumeTiming=times) == "irregular-timing"


def test_volume_timing_against_repetition_time_is_a_conflict(tmp_path):
    assert reason_of(timing, tmp_path, VolumeTiming=[0, 2, 4], RepetitionTime=2.5) == "tr-conflict"
    assert timing(tmp_path, VolumeTiming=[0, 2, 4], RepetitionTime=2.0).seconds == 2


@pytest.mark.parametrize("timing_of", [{"RepetitionTime": 2.0}, {"VolumeTiming": [0, 2, 4]}])
def test_a_delay_does_not_change_the_spacing(tmp_path, timing_of):
    assert timing(tmp_path, **timing_of, DelayTime=0.5, AcquisitionDuration=1.5).seconds == 2


def test_a_silent_sidecar_states_nothing(tmp_path):
    assert timing(tmp_path, EchoTime=0.03) is None


def test_the_first_sidecar_that_states_it_counts_and_no_other_is_read(tmp_path):
    own = write(tmp_path, "own.json", {})
    inherited = write(tmp_path, "inherited.json", {"RepetitionTime": 1.5})
    never = write(tmp_path, "never.json", "broken")
    sidecars = [("sidecar", own), ("inherited sidecar", inherited), ("other grid", never)]
    statement, read = first_timing(sidecars, tmp_path)
    assert (statement.seconds, statement.origin) == (1.5, "inherited sidecar")
    assert read == (own, inherited)


def test_inheritance_takes_what_applies_the_nearest_first(tmp_path):
    func = "sub-01/ses-a/func"
    applying = [
        f"{func}/sub-01_ses-a_task-rest_space-T1w_bold.json",
        f"{func}/sub-01_ses-a_task-rest_bold.json",
        "sub-01/sub-01_task-rest_bold.json",
        "task-rest_bold.json",
        "bold.json",
    ]
    other = [
        own_sidecar(Path(BOLD)).as_posix(),
        f"{func}/sub-01_ses-a_task-rest_run-2_bold.json",
        f"{func}/sub-01_ses-a_task-rest_boldref.json",
        "task-motor_bold.json",
        "sub-02/task-rest_bold.json",
    ]
    for name in applying + other:
        write(tmp_path, name, {})
    image = tmp_path / BOLD
    found = inherited_sidecars(tmp_path, image, parse_name(image.name))
    assert [relative(path, tmp_path) for path in found] == applying


RAW = "sub-01/ses-a/func/sub-01_ses-a_task-rest_run-1_bold"


@pytest.mark.parametrize("link", ["../..", "../../", "file://{raw}", "{raw}"])
@pytest.mark.parametrize(
    "sources",
    [
        {"Sources": [f"bids:raw:{RAW}.nii.gz"]},
        {"Sources": f"bids:raw:{RAW}.nii.gz"},
        {"Sources": ["bids::sub-01/x_boldref.nii.gz"], "RawSources": [f"{RAW}.nii.gz"]},
    ],
)
def test_raw_sidecars_are_found_through_sources(tmp_path, link, sources):
    raw = tmp_path / "raw"
    write(raw, f"{RAW}.json", {})
    write(raw, "task-rest_bold.json", {})
    dataset = raw / "derivatives/fmriprep"
    dataset.mkdir(parents=True)
    found = raw_sidecars(sources, dataset, {"raw": link.format(raw=raw)})
    assert list(found) == [raw / f"{RAW}.json", raw / "task-rest_bold.json"]


@pytest.mark.parametrize(
    "source",
    [
        "bids:elsewhere:sub-01/a_bold.nii.gz",
        "/container/data/sub-01/a_bold.nii.gz",
        "bids:",
        "",
        7,
        None,
        "bids:raw:../../etc/a_bold.nii.gz",
    ],
)
@pytest.mark.parametrize("link", ["https://example.org/raw", "../nowhere", "file:///nowhere", ""])
def test_sources_out_of_reach_are_no_error(tmp_path, source, link):
    assert list(raw_sidecars({"Sources": [source]}, tmp_path, {"raw": link})) == []
