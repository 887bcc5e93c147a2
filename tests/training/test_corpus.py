"""What a training trains on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Contract, PreparedRun, Recording, Refusal
from slimbrain_app.settings import Rank
from slimbrain_app.training.corpus import (
    COLUMNS,
    Corpus,
    Item,
    check_recordings,
    rank_corpus,
    split_people,
    tabulate_corpus,
)

PREPARED = PreparedRun(
    folder=Path("nowhere"),
    volumes=300,
    voxels=1,
    tr=2.0,
    dummy_scans=0,
    coverage=1.0,
    mean=0.0,
    deviation=1.0,
    constant_voxels=0,
    clipped_values=0,
    replaced_values=0,
    displacement=None,
    checksums=(),
    fingerprint="f",
    notices=(),
)


def recording_of(dataset, participant, run):
    name = f"sub-{participant}_run-{run}"
    return Recording(dataset=dataset, participant=participant, run=name, prepared=PREPARED)


recordings = st.lists(
    st.builds(
        recording_of, st.sampled_from("ab"), st.sampled_from("123456"), st.sampled_from("123")
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda recording: (recording.person, recording.run),
)


@given(recordings, st.floats(0, 0.99), st.integers(0, 5), st.randoms())
def test_nobody_is_on_both_sides_whatever_the_order_of_recordings(found, share, seed, random):
    people = {recording.person for recording in found}
    if len(people) < 2:
        with pytest.raises(CallRefused, match="too-few"):
            split_people(found, share, seed)
        return
    train, validation = split_people(found, share, seed)
    assert sorted(map(repr, train + validation)) == sorted(map(repr, found))
    assert not {r.person for r in train} & {r.person for r in validation}
    assert train
    assert bool(validation) == (share > 0)
    assert (train, validation) == split_people(random.sample(found, len(found)), share, seed)


def test_the_share_is_one_of_people_not_of_runs():
    found = [recording_of("a", f"{n:02}", run) for n in range(20) for run in range(1 + n % 4)]
    train, validation = split_people(found, 0.25, 0)
    assert len({recording.person for recording in validation}) == 5
    assert len({recording.person for recording in train}) == 15


def test_another_seed_keeps_others_out_and_more_people_move_few():
    found = [recording_of("a", f"{n:02}", 1) for n in range(40)]
    out = {recording.person for recording in split_people(found, 0.25, 0)[1]}
    assert out != {recording.person for recording in split_people(found, 0.25, 1)[1]}
    more = [*found, *(recording_of("b", f"{n:02}", 1) for n in range(4))]
    assert len(out - {recording.person for recording in split_people(more, 0.25, 0)[1]}) <= 4


def test_the_same_label_in_two_datasets_is_two_people():
    found = [recording_of("a", "01", 1), recording_of("b", "01", 1)]
    train, validation = split_people(found, 0.1, 0)
    assert len(train) == len(validation) == 1


@pytest.mark.parametrize(("found", "words"), [([], "no usable run"), (["1", "2"], "a/sub-01")])
def test_without_two_people_the_refusal_says_what_there_is(found, words):
    with pytest.raises(CallRefused, match="too-few") as caught:
        split_people([recording_of("a", "01", run) for run in found], 0.1, 0)
    assert words in caught.value.found


def test_windows_are_those_that_the_participant_level_selects(tmp_path, prepared_runs):
    found = prepared_runs(tmp_path, 2)
    watched = []
    rank = Rank(windows=3)
    items = rank_corpus(found, Contract(), None, rank, 0, lambda *state: watched.append(state))
    assert watched == [(1, 2), (2, 2)]
    for item, recording in zip(items, found, strict=True):
        ranked = rank_run(recording.prepared, Contract(), None, rank, 0, recording.run)
        assert item == Item(recording, tuple(window.start for window in ranked.selected))
        assert len(item.starts) == 3


def corpus_of(items, split=1):
    return Corpus(tuple(items[split:]), tuple(items[:split]), Contract())


def test_the_fingerprint_tells_any_change_but_that_of_order():
    items = [Item(recording_of("a", f"{n:02}", 1), (0, 20 * n)) for n in range(4)]
    mark = corpus_of(items).fingerprint
    assert mark == replace(corpus_of(items), train=corpus_of(items).train[::-1]).fingerprint
    moved = replace(items[2].recording, prepared=replace(PREPARED, folder=Path("elsewhere")))
    assert mark == corpus_of([*items[:2], replace(items[2], recording=moved), items[3]]).fingerprint
    remade = replace(items[2].recording, prepared=replace(PREPARED, fingerprint="g"))
    others = [
        corpus_of(items[:3]),
        corpus_of(items, split=2),
        corpus_of([*items[:3], replace(items[3], starts=(0, 80))]),
        corpus_of([*items[:3], replace(items[3], starts=(60, 0))]),
        corpus_of([*items[:2], replace(items[2], recording=remade), items[3]]),
        replace(corpus_of(items), contract=Contract(frame_time=2.0)),
    ]
    assert len({mark, *(other.fingerprint for other in others)}) == 1 + len(others)


def break_file(name, change):
    def do(folder):
        array = np.load(folder / f"{name}.npy")
        np.save(folder / f"{name}.npy", change(array))

    return do


def cut_file(folder):
    whole = (folder / "signal.npy").read_bytes()
    (folder / "signal.npy").write_bytes(whole[:-1])


@pytest.mark.parametrize(
    "damage",
    [
        cut_file,
        lambda folder: (folder / "scale.npy").unlink(),
        lambda folder: (folder / "mean.npy").write_bytes(b""),
        lambda folder: (folder / "mean.npy").write_bytes(b"not an array at all"),
        break_file("signal", lambda array: array[:-1]),
        break_file("signal", lambda array: array.astype(np.int16)),
        break_file("voxels", lambda array: array[1:]),
        break_file("voxels", lambda array: array.astype(np.int64)),
    ],
)
def test_a_damaged_run_is_listed_and_the_others_are_used(tmp_path, prepared_runs, damage):
    found = prepared_runs(tmp_path, 3)
    damage(found[1].prepared.folder)
    usable, refused = check_recordings(found, Contract())
    assert usable == [found[0], found[2]]
    ((recording, refusal),) = refused
    assert recording == found[1]
    assert (refusal.run, refusal.code) == (found[1].run, "prepared-bad")
    assert str(tmp_path) not in refusal.message


def test_a_run_shorter_than_one_window_of_this_contract_is_listed(tmp_path, prepared_runs):
    found = [
        *prepared_runs(tmp_path / "a", 1, volumes=41),
        *prepared_runs(tmp_path / "b", 1, volumes=60),
    ]
    assert check_recordings(found, Contract())[0] == found
    usable, refused = check_recordings(found, Contract(frame_time=2.9))
    assert usable == found[1:]
    assert [refusal.code for _, refusal in refused] == ["too-short"]


def test_the_table_has_every_run_once_used_or_with_a_reason():
    items = [Item(recording_of("a", f"{n:02}", 1), (40, 0)) for n in range(3)]
    refusal = Refusal(
        run="sub-09_run-1",
        code="no-mask",
        file="sub-09.nii.gz",
        expected="a mask",
        found="none",
        advice="make one",
    )
    table = tabulate_corpus(corpus_of(items), {"a": [refusal], "b": [refusal, refusal]})
    assert list(table.columns) == list(COLUMNS)
    assert len(table) == 6
    used = table[table["code"].isna()]
    assert used["split"].value_counts().to_dict() == {"train": 2, "validation": 1}
    assert set(used["starts"]) == {"40 0"}
    left_out = table[table["split"].isna()]
    assert list(left_out["dataset"]) == ["a", "b", "b"]
    assert set(left_out["code"]) == {"no-mask"}
    assert set(left_out["message"]) == {refusal.message}


def test_a_table_without_refusals_or_without_runs_has_all_columns():
    items = [Item(recording_of("a", "01", 1), (0,))]
    assert list(tabulate_corpus(corpus_of(items), {}).columns) == list(COLUMNS)
    assert list(tabulate_corpus(corpus_of([]), {}).columns) == list(COLUMNS)
