"""Fine-tuning by gradient on small prepared runs; in processes of its own where it is stopped."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.packages import load_encoder, load_heads, load_package, note_seen
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.prediction import predict
from slimbrain_app.prepare.store import load_prepared
from slimbrain_app.records import Contract
from slimbrain_app.settings import FinetuneSettings, read_settings
from slimbrain_app.training.corpus import Corpus, Item
from slimbrain_app.training.distributed import Processes
from slimbrain_app.training.lesson import Labels, Lesson
from slimbrain_app.training.log import End, Resume, Step, Validation, pick, read_log
from slimbrain_app.training.tuning import FineTuning, tune_heads
from slimbrain_app.training.views import KeptEmbeddings
from slimbrain_app.workflow.finetuning import FinetuneCall
from slimbrain_app.workflow.tuning import carry_out

BINARIES = Path(sys.executable).parent
PEOPLE = 14
SETTINGS = """
package_name = "mine"
[predict]
outcomes = ["sex", "age"]
[rank]
windows = 2
[tune]
encoder = "lora"
rate = 1e-2
passes = 3
people = 4
windows = 1
[pace]
workers = 0
at_once = 2
[compute]
nprocs = 1
device = "cpu"
"""
# Two of fourteen are to validate, two to test.
STEPS = -(-(PEOPLE - 4) // 4)


class Listener:
    """Remembers what it is told."""

    def __init__(self):
        self.said = []

    def show_plan(self, plan):
        pass

    def count(self, what, done, total):
        self.said.append(f"{what} {done}/{total}")

    def say(self, text):
        self.said.append(text)

    def tell(self, event):
        self.said.append(event)


@pytest.fixture(scope="session")
def labelled(prepared_runs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "cohort"
    prepared_runs(folder, PEOPLE)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{number:02}" for number in range(1, PEOPLE + 1)],
            "sex": ["F", "M"] * (PEOPLE // 2),
            "age": np.random.default_rng(0).normal(30, 8, PEOPLE).round(1),
        }
    )
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="session")
def config(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("config") / "small.toml"
    file.write_text(SETTINGS)
    return file


@pytest.fixture(scope="session")
def settings(config) -> FinetuneSettings:
    return read_settings(FinetuneSettings, config, {})


@pytest.fixture(scope="session")
def tuned(labelled, config, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "out"
    command = command_of(labelled, output, config)
    return output, subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def described(tuned, tmp_path) -> Path:
    """An output in which all runs are described, and nothing is trained."""
    shutil.copytree(tuned[0] / "features", tmp_path / "out/features")
    return tmp_path / "out"


def command_of(dataset, output, config) -> list[str]:
    words = [dataset, output, "group", "--action", "finetune", "--config", config]
    return [str(BINARIES / "slimbrain"), *map(str, words)]


def tune(dataset, output, settings):
    call = FinetuneCall(
        datasets=(dataset,),
        output=output,
        settings=settings,
        work_dir=None,
        command=("slimbrain",),
    )
    return carry_out(call, Listener())


def vary(settings, **others) -> FinetuneSettings:
    return replace(settings, tune=replace(settings.tune, **others))


def read_package(package: Path) -> dict[str, bytes]:
    files = [file for file in package.iterdir() if file.name != "training.jsonl"]
    return {file.name: file.read_bytes() for file in files}


def read_parts(output: Path) -> pd.Series:
    table = pd.read_csv(output / "logs/mine_split.tsv", sep="\t")
    return table.set_index("participant_id")["part"]


def weights_of(package):
    return {name: value.numpy() for name, value in load_encoder(package).state_dict().items()}


def test_a_tuned_encoder_makes_a_package_like_any_other(tuned):
    output, result = tuned
    assert result.returncode == Exit.DONE, result.stderr
    package, tiny = load_package(output / "models/mine"), load_package("tiny")
    assert [head.outcome for head in package.heads] == ["sex", "age"]
    assert not (output / "models/mine/checkpoints").exists()
    before, after = weights_of(tiny), weights_of(package)
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    maps = ("attn.qkv.weight", "attn.proj.weight")
    # None where the pass before the first was the best.
    assert all(name.endswith(maps) for name in moved)
    assert "a linear head on the encoder as it was" in result.stderr


def test_the_log_tells_steps_and_validations_and_the_end(tuned):
    events = read_log(tuned[0] / "models/mine/training.jsonl")
    assert [event.step for event in pick(events, Step)] == list(range(1, 3 * STEPS + 1))
    assert [event.pass_ for event in pick(events, Validation)] == [0, 1, 2, 3]
    assert [event.finished for event in pick(events, End)] == [True]
    assert all(len(event.kinds) == 2 for event in pick(events, Step))


def test_the_test_part_is_not_seen_and_the_others_are(tuned, labelled):
    package = load_package(tuned[0] / "models/mine")
    parts = read_parts(tuned[0])
    assert parts.value_counts().to_dict() == {"train": PEOPLE - 4, "validation": 2, "test": 2}
    for label, part in parts.items():
        (folder,) = (labelled / label / "func").iterdir()
        assert bool(note_seen(package, load_prepared(folder))) == (part != "test")


def test_outcomes_of_the_test_part_change_its_score_and_nothing_else(
    tuned, labelled, settings, described, tmp_path
):
    copy = shutil.copytree(labelled, tmp_path / "cohort")
    table = pd.read_csv(copy / "participants.tsv", sep="\t").set_index("participant_id")
    parts = read_parts(tuned[0])
    tests = list(parts.index[parts == "test"])
    for name in ("sex", "age"):
        table.loc[tests, name] = table.loc[tests, name].to_numpy()[::-1]
    table.to_csv(copy / "participants.tsv", sep="\t")
    split = tmp_path / "split.tsv"
    parts.to_csv(split, sep="\t")
    other = replace(settings, judge=replace(settings.judge, split=str(split)))
    done = tune(copy, described, other)
    before, after = (
        load_heads(one) for one in (load_package(tuned[0] / "models/mine"), done.package)
    )
    for head in ("sex", "age"):
        assert np.array_equal(before.weights[head], after.weights[head])
        assert np.array_equal(before.biases[head], after.biases[head])
    for own, new in zip(before.heads, after.heads, strict=True):
        assert replace(own, score=None) == replace(new, score=None)
        assert own.score != new.score


def stop_when(command: list[str], file: Path, number: int) -> int:
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not file.exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=120)
    return process.returncode


@pytest.mark.slow
def test_killed_training_goes_on_to_the_same_package(labelled, config, settings, tuned, described):
    command = command_of(labelled, described, config)
    state = described / "models/mine/checkpoints/state.pt"
    assert stop_when(command, state, signal.SIGKILL) == -signal.SIGKILL
    done = tune(labelled, described, settings)
    events = read_log(described / "models/mine/training.jsonl")
    assert pick(events, Resume)
    assert [event.step for event in pick(events, Step)] == list(range(1, 3 * STEPS + 1))
    assert read_package(done.package.folder) == read_package(tuned[0] / "models/mine")


def test_a_finished_training_is_found_finished(labelled, settings, tuned):
    before = read_package(tuned[0] / "models/mine")
    done = tune(labelled, tuned[0], settings)
    assert done.before
    assert read_package(tuned[0] / "models/mine") == before


@pytest.mark.slow
def test_two_processes_train_as_one_does(labelled, config, tuned, described):
    command = command_of(labelled, described, config)
    program = [BINARIES / "torchrun", "--standalone", "--nproc-per-node", "2", "-m"]
    words = [*map(str, program), "slimbrain_app", *command[1:]]
    result = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert result.returncode == Exit.DONE, result.stderr
    one, two = (load_package(output / "models/mine") for output in (tuned[0], described))
    first, second = weights_of(one), weights_of(two)
    for name in first:
        np.testing.assert_allclose(second[name], first[name], atol=1e-4)


def test_all_of_the_encoder_learns_where_it_is_to(labelled, settings, described):
    # A single step, and patience for it: what is kept is the best by validation.
    done = tune(labelled, described, vary(settings, encoder="full", passes=1, rate=1e-3))
    before, after = weights_of(load_package("tiny")), weights_of(done.package)
    events = read_log(described / "models/mine/training.jsonl")
    start, end = (event.loss for event in pick(events, Validation))
    moved = {name for name in before if not np.allclose(before[name], after[name], atol=1e-6)}
    assert len(moved) > len(before) / 2 if end < start else not moved


def test_an_attentive_head_on_a_frozen_encoder_reads_its_views(labelled, settings, described):
    wishes = vary(settings, encoder="frozen", head="attentive", passes=20, head_rate=0.05)
    done = tune(labelled, described, wishes)
    heads = load_heads(done.package)
    assert set(heads.attention) == {"sex", "age"}
    assert all(head.pooling == "attention" for head in heads.heads)
    views = np.random.default_rng(0).standard_normal((4, 192)).astype(np.float32)
    told = predict(heads, views.mean(0), views, trained=True, seen=False)
    looks = heads.attention["age"]
    scores = np.tanh(views @ looks.map.T + looks.shift) @ looks.query
    pooled = np.exp(scores) / np.exp(scores).sum() @ views
    (age,) = (one.value for one in told if one.outcome == "age")
    expected = heads.weights["age"] @ pooled + heads.biases["age"]
    assert age == pytest.approx(float(expected[0]), rel=1e-5)


def test_a_part_without_a_class_is_refused_before_anything_is_embedded(
    labelled, settings, tmp_path
):
    copy = shutil.copytree(labelled, tmp_path / "cohort")
    table = pd.read_csv(copy / "participants.tsv", sep="\t")
    table["sex"] = ["F", "M"] + ["F"] * (PEOPLE - 3) + ["M"]
    table.to_csv(copy / "participants.tsv", sep="\t", index=False)
    with pytest.raises(CallRefused) as caught:
        tune(copy, tmp_path / "out", settings)
    assert caught.value.reason == "too-few"
    assert not list((tmp_path / "out").glob("features/**/*.npz"))


def test_folds_in_the_place_of_parts_are_refused(labelled, settings, tmp_path):
    split = tmp_path / "split.tsv"
    rows = [f"sub-{number:02}\t{number % 2}" for number in range(1, PEOPLE + 1)]
    split.write_text("\n".join(["participant_id\tfold", *rows]) + "\n")
    with pytest.raises(CallRefused, match="column part"):
        tune(
            labelled,
            tmp_path / "out",
            replace(settings, judge=replace(settings.judge, split=str(split))),
        )


@pytest.fixture
def needle(prepared_runs, tmp_path):
    """A lesson in which one view in six tells the outcome, and shows by its first value."""
    (recording,) = prepared_runs(tmp_path, 1)
    draw, people, views, width = np.random.default_rng(0), 120, 6, 8
    values = draw.standard_normal(people).astype(np.float32)
    embeddings = draw.standard_normal((people, views, width)).astype(np.float32)
    embeddings[:, :, 0] = -2
    told = draw.integers(views, size=people)
    embeddings[np.arange(people), told, 0] = 2
    embeddings[np.arange(people), told, 1] = values
    names = tuple(f"{number:03}" for number in range(people))
    items = [Item(replace(recording, participant=name), tuple(range(views))) for name in names]
    means = embeddings.mean(axis=1)
    slopes = np.linalg.lstsq(means[:80], values[:80], rcond=None)[0].astype(np.float32)
    lesson = Lesson(
        corpus=Corpus(tuple(items[:80]), tuple(items[80:]), Contract()),
        labels=Labels(
            people=names,
            outcomes=("age",),
            classes=(0,),
            targets=values[:, None],
            weights=np.ones((people, 1), np.float32),
            starts=((slopes[None], np.zeros(1, np.float32)),),
        ),
    )
    kept = KeptEmbeddings(items=list(embeddings), labels=lesson.labels, device=torch.device("cpu"))
    return lesson, kept


@pytest.mark.parametrize(("head", "share"), [("linear", 0.8), ("attentive", 0.1)])
def test_attention_finds_the_view_that_tells_and_the_mean_does_not(
    needle, settings, tmp_path, head, share
):
    lesson, views = needle
    wishes = vary(
        settings,
        encoder="frozen",
        head=head,
        passes=60,
        patience=60,
        windows=6,
        people=16,
        head_rate=0.02,
        weight_decay=0.0,
    )
    place = FineTuning(tmp_path / "mine", wishes)
    heard = Listener()
    encoder = Encoder(PRESETS["tiny"])
    network = tune_heads(place, lesson, encoder, views, Processes(), 1000, False, heard.tell)
    losses = [event.loss for event in pick(heard.said, Validation)]
    assert (min(losses) < share * losses[0]) == (head == "attentive")
    assert min(losses) > 0.5 * losses[0] or head == "attentive"
    # What is given back is the best of all passes, not the last.
    bags = lesson.validation
    said = network.read(views.embed(encoder, bags), [len(bag.windows) for bag in bags])[0]
    truth = torch.from_numpy(lesson.labels.targets[80:])
    assert (said - truth).square().mean().item() == pytest.approx(min(losses), rel=1e-5)


def test_patience_ends_a_training_that_does_not_get_better(needle, settings, tmp_path):
    lesson, views = needle
    wishes = vary(settings, encoder="frozen", passes=60, patience=3, people=16, head_rate=1.0)
    heard = Listener()
    encoder = Encoder(PRESETS["tiny"])
    place = FineTuning(tmp_path / "mine", wishes)
    tune_heads(place, lesson, encoder, views, Processes(), 1000, False, heard.tell)
    losses = [event.loss for event in pick(heard.said, Validation)]
    assert len(losses) - 1 - int(np.argmin(losses)) == 3
    assert len(losses) < 60
