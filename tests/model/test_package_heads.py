"""Heads in packages: the same after a round trip, refused by name where they are not whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.package_heads import Heads, Reference
from slimbrain_app.model.packages import (
    Config,
    Package,
    copy_package,
    load_heads,
    load_package,
    save_package,
)
from slimbrain_app.model.presets import CONTRACTS, PRESETS
from slimbrain_app.records import Calibration, Head, HeadScore

WIDTH = PRESETS["tiny"].embedding_width
AGE = Head(
    outcome="age",
    kind="number",
    people=41,
    units="years",
    margin=7.25,
    quantiles=tuple(np.linspace(20, 70, 101)),
    score=HeadScore(metric="r", value=0.4, lower=0.1, upper=0.6, scheme="5 folds of people"),
)
SEX = Head(
    outcome="sex",
    kind="class",
    people=40,
    classes=("F", "M"),
    levels={"F": "female"},
    calibration=Calibration(slope=1.5, intercept=-0.25),
    quantiles=tuple(np.linspace(0.1, 0.9, 101)),
)
SITE = Head(
    outcome="site",
    kind="class",
    people=39,
    classes=("a", "b", "c"),
    calibration=Calibration(slope=0.5),
)


def make_heads(*heads: Head, width: int = WIDTH) -> Heads:
    draw = np.random.default_rng(0)
    return Heads(
        heads=heads,
        weights={head.outcome: draw.standard_normal((head.outputs, width)) for head in heads},
        biases={head.outcome: draw.standard_normal(head.outputs) for head in heads},
        reference=Reference(draw.standard_normal(width), np.eye(width), 3.5),
    )


def save(folder: Path, heads: Heads | None) -> Package:
    encoder = Encoder(PRESETS["tiny"], seed=1)
    config = Config(
        preset="tiny", trained=True, seed=1, contract=CONTRACTS["tiny"], encoder=encoder.sizes
    )
    return save_package(folder, config, encoder, heads=heads, card="# with heads")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A package with heads; copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "headed"
    return save(folder, make_heads(AGE, SEX, SITE)).folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    copy = tmp_path / "headed"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def sign(folder: Path) -> None:
    """Make checksums fit the files, as someone would who means to deceive."""
    names = [file.name for file in folder.iterdir() if file.name != "checksums.json"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(digests))


def refusal(folder: Path) -> CallRefused:
    with pytest.raises(CallRefused) as caught:
        load_package(folder)
    assert caught.value.reason == "package-bad"
    return caught.value


def test_heads_come_back_as_float32_and_all_that_is_said_of_them(made):
    saved, package = make_heads(AGE, SEX, SITE), load_package(made)
    back = load_heads(package)
    assert back is not None
    assert back.heads == package.heads == package.identity.heads == (AGE, SEX, SITE)
    for outcome in ("age", "sex", "site"):
        for before, after in ((saved.weights, back.weights), (saved.biases, back.biases)):
            assert after[outcome].dtype == np.float32
            assert np.array_equal(after[outcome], before[outcome].astype(np.float32))
    assert np.array_equal(back.reference.mean, saved.reference.mean.astype(np.float32))
    assert np.array_equal(back.reference.precision, np.eye(WIDTH))
    assert back.reference.limit == 3.5


def test_two_classes_have_one_output_and_more_have_one_each(made):
    shapes = {name: values.shape for name, values in load_file(made / "heads.safetensors").items()}
    assert shapes["age.weight"] == shapes["sex.weight"] == (1, WIDTH)
    assert shapes["site.weight"] == (3, WIDTH)
    assert shapes["site.bias"] == (3,)


def test_the_shipped_package_has_no_heads():
    package = load_package("tiny")
    assert package.heads == package.identity.heads == ()
    assert load_heads(package) is None


def test_other_heads_make_another_package(made, tmp_path):
    other = save(tmp_path / "headed", make_heads(AGE, SEX, replace(SITE, people=40)))
    assert other.sha256 != load_package(made).sha256
    assert save(tmp_path / "same", make_heads(AGE, SEX, SITE)).sha256 == load_package(made).sha256


def test_heads_go_when_a_package_without_takes_the_place(folder):
    assert save(folder, None).heads == ()
    assert not list(folder.glob("heads*"))
    (folder / "checkpoints").mkdir()
    assert len(save(folder, make_heads(AGE)).heads) == 1
    (folder / "checkpoints").mkdir()
    assert save(folder, None).heads == ()


def test_a_copy_keeps_heads_as_they_are_whatever_the_precision(made, tmp_path):
    import torch

    copy = copy_package(load_package(made), tmp_path / "copy", dtype=torch.float16)
    assert copy.heads == (AGE, SEX, SITE)
    for name in ("heads.json", "heads.safetensors"):
        assert (copy.folder / name).read_bytes() == (made / name).read_bytes()


@pytest.mark.parametrize("name", ["heads.json", "heads.safetensors"])
def test_one_file_without_the_other_is_refused(folder, name):
    (folder / name).unlink()
    assert str(refusal(folder).file).endswith(name)
    sign(folder)
    assert "only one" in refusal(folder).found


@pytest.mark.parametrize("name", ["heads.json", "heads.safetensors"])
def test_a_flipped_bit_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    assert str(refusal(folder).file).endswith(name)


def test_heads_without_a_checksum_are_refused(folder):
    digests = json.loads((folder / "checksums.json").read_text())
    kept = {name: digest for name, digest in digests.items() if not name.startswith("heads")}
    (folder / "checksums.json").write_text(json.dumps(kept))
    assert "heads.json, heads.safetensors" in refusal(folder).found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tensors: tensors.pop("sex.bias"), "sex.bias"),
        (lambda tensors: tensors.update({"iq.bias": np.zeros(1, np.float32)}), "iq.bias"),
        (
            lambda tensors: tensors.update({"age.weight": np.zeros((1, 64), np.float32)}),
            f"age.weight: 1 x 64 for 1 x {WIDTH}",
        ),
        (
            lambda tensors: tensors.update({"site.weight": np.zeros((1, WIDTH), np.float32)}),
            f"site.weight: 1 x {WIDTH} for 3 x {WIDTH}",
        ),
        (
            lambda tensors: tensors.update({"reference.limit": np.zeros(1)}),
            "reference.limit: F64 1 for 1",
        ),
        (
            lambda tensors: tensors["reference.precision"].put(3, np.nan),
            "others in reference.precision",
        ),
    ],
    ids=["missing", "surplus", "width", "outputs", "type", "not finite"],
)
def test_damaged_heads_are_refused_by_name(folder, change, named):
    tensors = load_file(folder / "heads.safetensors")
    change(tensors)
    save_file(tensors, folder / "heads.safetensors")
    sign(folder)
    assert named in refusal(folder).found


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"pooling": "attentive"}, "pooling"),
        ({"kind": "text"}, "kind"),
        ({"people": "41"}, "people"),
        ({"people": 0}, "somebody"),
        ({"nonsense": 1}, "nonsense"),
        ({"classes": ["a", "b"]}, "no class"),
        ({"calibration": {"slope": 1.0, "intercept": 0.0}}, "no odds"),
        ({"margin": -1.0}, "not below 0"),
        ({"margin": float("nan")}, "margin"),
        ({"quantiles": [1.0, 2.0]}, "a quantile for each percentile"),
        ({"quantiles": [*range(100), 0]}, "quantiles that rise"),
        ({"score": {"metric": "r", "value": 0.3}}, "score.lower"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_of_a_head_is_refused_by_name(folder, change, named):
    described = json.loads((folder / "heads.json").read_text())
    described[0] |= change
    (folder / "heads.json").write_text(json.dumps(described))
    sign(folder)
    found = refusal(folder)
    assert str(found.file).endswith("heads.json")
    assert named in found.found


@pytest.mark.parametrize("count", [0, 2])
def test_each_outcome_has_one_head(folder, count):
    described = json.loads((folder / "heads.json").read_text())
    (folder / "heads.json").write_text(json.dumps(described[:1] * count))
    sign(folder)
    assert "a head for each" in refusal(folder).expected


@pytest.mark.parametrize(
    ("head", "change"),
    [
        (SEX, {"classes": ("F",)}),
        (SEX, {"classes": ("F", "F")}),
        (SEX, {"margin": 1.0}),
        (SITE, {"calibration": Calibration(slope=1.0, intercept=0.5)}),
        (SITE, {"quantiles": SEX.quantiles}),
    ],
)
def test_a_head_that_contradicts_itself_can_not_be_made(head, change):
    with pytest.raises(ValueError, match=f"head {head.outcome}: expected"):
        Head(**{**asdict(head), "calibration": head.calibration, **change})


@pytest.mark.parametrize(
    "heads",
    [
        make_heads(AGE, width=64),
        replace(make_heads(AGE, SEX), heads=(AGE,)),
        replace(make_heads(AGE), biases={"age": np.array([np.inf])}),
    ],
    ids=["width", "without a description", "not finite"],
)
def test_heads_that_do_not_fit_are_not_saved(tmp_path, heads):
    with pytest.raises(ValueError, match="heads"):
        save(tmp_path / "one", heads)
    assert not list(tmp_path.iterdir())
