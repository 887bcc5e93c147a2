from __future__ import annotations

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.cli.arguments import gigabytes, label, memory, normalise
from slimbrain_app.cli.parser import make_parser
from slimbrain_app.errors import CallRefused, Exit

POSITIONALS = ["in", "out", "participant"]
LISTS = [["--participant-label", "01", "02"], ["--task-id", "rest"], ["--session-id", "1", "2"]]
SINGLES = [["--seed", "3"], ["--dry-run"], ["--model", "tiny"], ["-v"]]
labels = st.text(alphabet="abcXYZ0123456789", min_size=1)


@given(
    options=st.permutations([*LISTS, *SINGLES]),
    places=st.lists(st.integers(0, len(LISTS) + len(SINGLES)), min_size=1, max_size=3),
)
def test_positionals_are_found_wherever_they_stand(options, places):
    """They may lead, end, or be split into a leading part and a rest."""
    place = places[0]
    leading = len(places) - 1
    words = [
        *POSITIONALS[:leading],
        *(word for option in options[:place] for word in option),
        *POSITIONALS[leading:],
        *(word for option in options[place:] for word in option),
    ]
    if place == 0 and leading:
        words = [*POSITIONALS, *(word for option in options for word in option)]
    parsed = make_parser().parse_strictly(normalise(words))
    assert [str(parsed.bids_dir), str(parsed.output_dir), parsed.analysis_level] == POSITIONALS
    assert parsed.participant_label == ["01", "02"]
    assert parsed.task_id == ["rest"]
    assert parsed.session_id == ["1", "2"]


def test_underscores_are_dashes_in_options_but_not_in_values():
    words = normalise(["in", "out", "participant", "--work_dir=a_b", "--bids_filter_file", "c_d"])
    assert words == ["in", "out", "participant", "--work-dir=a_b", "--bids-filter-file", "c_d"]


@given(labels)
def test_labels_with_and_without_prefix_are_equal(text):
    assert label("sub")(text) == label("sub")(f"sub-{text}") == text


@pytest.mark.parametrize("text", ["", "a b", "../x", "a_b", "sub-"])
def test_what_is_no_label_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        label("sub")(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8.0), ("8G", 8.0), ("8gb", 8.0), ("8000", 8.0), ("8000MB", 8.0), ("1.5TB", 1500.0)],
)
def test_memory_is_read_with_its_unit_or_as_megabytes(text, expected):
    assert memory(text) == pytest.approx(expected)


def test_gigabytes_need_no_unit():
    assert gigabytes("16") == 16.0


@pytest.mark.parametrize("text", ["16", "511", "-8GB", "eight", "8GBs"])
def test_unlikely_memory_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        memory(text)


def test_unknown_option_gets_the_nearest_spelling():
    with pytest.raises(CallRefused, match="--participant-label") as refusal:
        make_parser().parse_strictly([*POSITIONALS, "--participant-labels", "01"])
    assert refusal.value.exit_code == Exit.USAGE


def test_options_are_never_abbreviated():
    with pytest.raises(CallRefused):
        make_parser().parse_strictly([*POSITIONALS, "--part", "01"])


def test_lists_may_be_repeated():
    words = [*POSITIONALS, "--task-id", "rest", "--task-id", "task-nback", "movie"]
    assert make_parser().parse_strictly(words).task_id == ["rest", "nback", "movie"]


OPTIONS = """
--action --bids-database-dir --bids-exec-spec --bids-filter-file --config --dataset --device
--dry-run --dummy-scans --fd-threshold --fs-license-file --help --mem --mem-gb --mem-mb --model
--n-cpus --notrack --nprocs --nthreads --omp-nthreads --outcome --overwrite --package-name
--participant-id --participant-label --phenotype --preset --quiet --ranking --run-id
--save-prepared --save-views --seed --session-id --session-label --skip-bids-validation --space
--stop-on-first-crash --task-id --tr --verbose --version --views --windows --work-dir -h -q -v -w
""".split()


def test_the_list_of_options_is_the_one_promised():
    """A new or lost option is a change of the contract with scripts."""
    parser = make_parser()
    assert (
        sorted(option for action in parser._actions for option in action.option_strings) == OPTIONS
    )


def test_options_of_fmriprep_without_a_meaning_here_are_noted():
    words = ["--notrack", "--fs-license-file", "x", "--skip-bids-validation"]
    parsed = make_parser().parse_strictly([*POSITIONALS, *words])
    assert parsed.ignored == ["--notrack", "--fs-license-file", "--skip-bids-validation"]
