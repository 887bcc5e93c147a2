"""Packages: whole, strict, and the same after a round trip."""

from __future__ import annotations

import hashlib
import json
import pickle
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from slimbrain_app.errors import CallRefused, Exit
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor
from slimbrain_app.model.packages import (
    Config,
    copy_package,
    create_package,
    describe_seen,
    installed_packages,
    load_encoder,
    load_extractor,
    load_package,
    note_seen,
    read_checksums,
    save_package,
)
from slimbrain_app.model.presets import CONTRACTS, PRESETS
from slimbrain_app.records import Contract, PreparedRun


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """An untrained package; copy it before changing it."""
    return create_package(tmp_path_factory.mktemp("models") / "fresh", "tiny", seed=5).folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    copy = tmp_path / "fresh"
    copy.mkdir()
    for file in made.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def sign(folder: Path) -> None:
    """Make checksums fit the files, as someone would who means to deceive."""
    names = [file.name for file in folder.iterdir() if file.name != "checksums.json"]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "checksums.json").write_text(json.dumps(digests))


def change_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    sign(folder)


def change_config(folder: Path, change) -> None:
    content = json.loads((folder / "config.json").read_text())
    change(content)
    (folder / "config.json").write_text(json.dumps(content))
    sign(folder)


def refusal(folder: Path) -> CallRefused:
    with pytest.raises(CallRefused) as caught:
        load_package(folder)
    assert caught.value.reason == "package-bad"
    assert caught.value.exit_code == Exit.CONFIGURATION
    return caught.value


def test_weights_come_back_as_rounded_to_float16(made):
    loaded = load_encoder(load_package(made)).state_dict()
    drawn = Encoder(PRESETS["tiny"], seed=5).state_dict()
    assert loaded.keys() == drawn.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, drawn[name].half().float()), name


def test_float32_weights_and_an_extractor_come_back_to_the_bit(tmp_path):
    encoder = Encoder(PRESETS["tiny"], seed=1)
    extractor = TemporalExtractor(ExtractorSizes(width=16, heads=2), seed=1)
    config = Config(
        preset="tiny",
        trained=True,
        seed=None,
        contract=CONTRACTS["tiny"],
        encoder=encoder.sizes,
        extractor=extractor.sizes,
    )
    package = save_package(tmp_path / "both", config, encoder, extractor, card="# both")
    assert package == load_package("both", [tmp_path])
    assert package.config == config
    assert package.has_extractor and package.trained
    loaded = load_extractor(package)
    assert loaded is not None
    for saved, back in ((encoder, load_encoder(package)), (extractor, loaded)):
        assert not back.training
        for name, tensor in saved.state_dict().items():
            assert torch.equal(back.state_dict()[name], tensor), name


def test_loaded_weights_can_be_trained_on(made):
    assert all(
        parameter.requires_grad for parameter in load_encoder(load_package(made)).parameters()
    )


def test_an_untrained_package_says_so(made):
    package = load_package(made)
    assert not package.trained and not package.identity.trained
    assert not package.has_extractor and load_extractor(package) is None
    assert "**Untrained.**" in (made / "card.md").read_text()
    assert "seed 5" in (made / "card.md").read_text()


def test_the_shipped_package_was_trained_from_the_preset_with_the_seed_on_its_card():
    package = load_package("tiny")
    assert package.folder.parent == installed_packages()
    assert (package.preset, package.trained, package.config.seed) == ("tiny", True, 0)
    assert package.config.encoder == PRESETS["tiny"]
    assert package.contract == CONTRACTS["tiny"]
    assert sum(file.stat().st_size for file in package.folder.iterdir()) < 5e6
    drawn = Encoder(PRESETS["tiny"], seed=0).state_dict()
    moved = {
        name
        for name, tensor in load_encoder(package).state_dict().items()
        if not torch.allclose(tensor, drawn[name], rtol=1e-3, atol=1e-6)
    }
    filters = {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert moved == drawn.keys() - filters


def test_the_card_of_the_shipped_package_tells_data_terms_seed_and_limits():
    card = (load_package("tiny").folder / "card.md").read_text()
    for words in ("ABIDE", "non-commercial", "seed", "over a constant's", "What it is not for"):
        assert words in card, words


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_created(preset, tmp_path):
    package = create_package(tmp_path / preset, preset, seed=3)
    assert package.preset == preset
    assert package.contract == CONTRACTS[preset]


def test_the_same_seed_gives_the_same_package_and_another_does_not(made, tmp_path):
    again = create_package(tmp_path / "again" / "fresh", "tiny", seed=5)
    assert again.sha256 == load_package(made).sha256
    assert create_package(tmp_path / "fresh", "tiny", seed=6).sha256 != again.sha256


def test_files_follow_the_umask(made):
    modes = {stat.S_IMODE(file.stat().st_mode) for file in made.iterdir()}
    assert len(modes) == 1


def test_nothing_but_the_package_is_left_in_the_folder_above(tmp_path):
    create_package(tmp_path / "one", "tiny")
    create_package(tmp_path / "one", "tiny", seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_folder_with_other_things_is_never_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(CallRefused, match="usage"):
        create_package(tmp_path, "tiny")
    assert (tmp_path / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.md"])
def test_a_flipped_bit_is_refused(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-2] ^= 1
    (folder / name).write_bytes(content)
    assert str(refusal(folder).file).endswith(name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "card.md", "checksums.json"])
def test_a_half_written_package_is_refused(folder, name):
    (folder / name).unlink()
    refusal(folder)
    if name != "checksums.json":
        sign(folder)
        refusal(folder)


def test_a_truncated_file_is_refused_even_under_its_own_checksum(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    sign(folder)
    refusal(folder)


def test_an_empty_folder_is_refused(tmp_path):
    refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"model.safetensors": 3}', '{"../x": "00"}', "\x00"])
def test_checksums_that_are_none_are_refused(folder, text):
    (folder / "checksums.json").write_text(text)
    refusal(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("blocks.3.norm1.bias"), "blocks.3.norm1.bias"),
        (lambda weights: weights.update({"head.weight": torch.zeros(2)}), "head.weight"),
        (
            lambda weights: weights.update(
                {"blocks.1.proj.weight": weights["blocks.1.proj.weight"].T.contiguous()}
            ),
            "blocks.1.proj.weight",
        ),
        (
            lambda weights: weights.update(
                {"patch_embed.proj.weight": weights["patch_embed.proj.weight"].flatten(1)}
            ),
            "patch_embed.proj.weight",
        ),
    ],
    ids=["missing", "surplus", "transposed", "flattened"],
)
def test_weights_of_other_names_or_shapes_are_refused_by_name(folder, change, named):
    change_weights(folder, change)
    assert named in refusal(folder).found


def test_whole_numbers_are_refused_as_weights(folder):
    change_weights(
        folder,
        lambda weights: weights.update({"encoder_norm.bias": torch.zeros(192, dtype=torch.int64)}),
    )
    assert "encoder_norm.bias" in refusal(folder).found


def test_weights_without_a_checksum_are_refused(folder):
    save_file({"weight": torch.zeros(1)}, folder / "extractor.safetensors")
    assert "extractor.safetensors" in refusal(folder).found


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["contract"].update(version=2),
        lambda config: config["contract"].update(space="MNI152NLin6Asym"),
        lambda config: config["contract"].update(window_mode="selected"),
        lambda config: config["contract"].update(frames=20),
        lambda config: config["contract"].update(channels=["voxel", "global"]),
        lambda config: config["contract"].update(channels=["ratio"]),
        lambda config: config["contract"].update(frame_time=0.0),
        lambda config: config["contract"].update(frame_time=float("nan")),
        lambda config: config["encoder"].update(heads=5),
        lambda config: config["encoder"].update(mask_unit=[0, 4, 4, 4]),
        lambda config: config["encoder"].update(width=96),
        lambda config: config["encoder"].update(gates=1),
        lambda config: config.update(extractor={"width": 16}),
        lambda config: config.update(trained="no"),
        lambda config: config.pop("preset"),
    ],
)
def test_a_config_that_is_not_understood_or_contradicts_itself_is_refused(folder, change):
    change_config(folder, change)
    refusal(folder)


@pytest.mark.parametrize("change", [{"frame_time": 2.0}, {"channels": ("voxel", "global")}])
def test_another_frame_time_or_more_channels_are_legal(tmp_path, change):
    contract = replace(Contract(), **change)
    sizes = replace(PRESETS["tiny"], channels=len(contract.channels))
    config = Config(preset="tiny", trained=False, seed=0, contract=contract, encoder=sizes)
    package = save_package(tmp_path / "other", config, Encoder(sizes), card="# other")
    assert load_package(package.folder).contract == contract


def test_sizes_that_are_not_the_networks_are_not_saved(tmp_path):
    config = Config(
        preset="base", trained=False, seed=0, contract=CONTRACTS["base"], encoder=PRESETS["base"]
    )
    with pytest.raises(ValueError, match="sizes"):
        save_package(tmp_path / "other", config, Encoder(PRESETS["tiny"]), card="# other")
    assert not list(tmp_path.iterdir())


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "checksums.json"])
def test_a_pickle_is_refused_and_not_executed(folder, tmp_path, name):
    sprung = tmp_path / "sprung"
    (folder / name).write_bytes(pickle.dumps(Trap(sprung)))
    if name != "checksums.json":
        sign(folder)
    refusal(folder)
    assert not sprung.exists()


def test_places_are_searched_in_order_and_the_installed_last(made, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    create_package(second / "tiny", "tiny", seed=7)
    assert load_package("tiny", [first, second]).config.seed == 7
    create_package(first / "tiny", "tiny", seed=8)
    assert load_package("tiny", [first, second]).config.seed == 8
    assert load_package("tiny", [made.parent]).config.seed == 0


def test_a_damaged_package_is_not_passed_over_for_another(tmp_path):
    (tmp_path / "tiny").mkdir()
    with pytest.raises(CallRefused, match="package-bad"):
        load_package("tiny", [tmp_path])


@pytest.mark.parametrize("as_path", [True, False])
def test_a_folder_is_taken_as_it_is(made, tmp_path, monkeypatch, as_path):
    monkeypatch.chdir(made.parent)
    assert load_package(Path("fresh") if as_path else "./fresh").folder == made


def test_a_missing_package_is_refused_with_the_nearest_name(made):
    with pytest.raises(CallRefused) as caught:
        load_package("frehs", [made.parent])
    assert caught.value.reason == "package-missing"
    assert caught.value.exit_code == Exit.CONFIGURATION
    assert "fresh" in caught.value.advice


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(CallRefused, match="package-missing"):
        load_package(tmp_path / "none")


def save_trained(folder: Path, **given) -> None:
    encoder = Encoder(PRESETS["tiny"], seed=1)
    config = Config(
        preset="tiny",
        trained=True,
        seed=1,
        contract=CONTRACTS["tiny"],
        encoder=encoder.sizes,
    )
    save_package(folder, config, encoder, card="# trained", **given)


def test_records_are_part_of_the_package(tmp_path):
    folder = tmp_path / "one"
    save_trained(folder, records={"training.jsonl": "{}\n", "corpus.tsv": "a\tb\n"})
    assert (folder / "training.jsonl").read_text() == "{}\n"
    (folder / "corpus.tsv").write_text("a\tc\n")
    assert str(refusal(folder).file).endswith("corpus.tsv")


@pytest.mark.parametrize("name", ["card.md", "config.json", "checksums.json", "model.safetensors"])
def test_a_record_never_takes_the_place_of_another_part(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        save_trained(tmp_path / "one", records={name: ""})
    assert not list(tmp_path.iterdir())


def make_training(folder: Path) -> Path:
    (folder / "checkpoints" / "deep").mkdir(parents=True)
    (folder / "checkpoints" / "deep" / "state").write_text("so far")
    return folder


@pytest.mark.parametrize("older", [False, True])
def test_a_whole_package_takes_the_place_of_its_checkpoints(tmp_path, older):
    folder = tmp_path / "one"
    if older:
        save_trained(folder, records={"old.tsv": ""})
    save_trained(make_training(folder), records={"training.jsonl": "{}\n"})
    assert load_package(folder).trained
    stated = json.loads((folder / "checksums.json").read_text())
    left = {path.name for path in folder.iterdir()} - {"old.tsv"}
    assert left == {*stated, "checksums.json"}


@pytest.mark.parametrize("calls", range(1, 9))
def test_a_call_killed_at_any_move_loses_no_checkpoint_and_can_be_made_again(
    tmp_path, monkeypatch, calls
):
    folder = make_training(tmp_path / "one")
    replace_, left = Path.replace, calls

    def move(self, target):
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return replace_(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", move)
        try:
            save_trained(folder, records={"a.tsv": "", "b.tsv": ""})
        except KeyboardInterrupt:
            assert (folder / "checkpoints" / "deep" / "state").read_text() == "so far"
    save_trained(folder, records={"a.tsv": "", "b.tsv": ""})
    assert load_package(folder).trained
    assert not (folder / "checkpoints").exists()


def test_only_the_bold_files_of_a_training_are_known_again_and_by_no_name(made, tmp_path):
    shared = (
        ("sub-7/func/sub-7_task-rest_desc-brain_mask.nii.gz", "a3"),
        ("sub-7/func/sub-7_task-rest_desc-preproc_bold.json", "a4"),
    )
    bold = "sub-7/func/sub-7_task-rest_desc-preproc_bold.nii.gz"
    run, other = (make_prepared(((bold, digest), *shared), "f1") for digest in ("a1", "a2"))
    save_trained(tmp_path / "one", records={"seen.json": describe_seen([run])})
    package = load_package(tmp_path / "one")
    assert [notice.code for notice in note_seen(package, run)] == ["seen-in-training"]
    assert not note_seen(package, other)
    assert "sub" not in (package.folder / "seen.json").read_text()
    assert not note_seen(load_package(made), run)


def test_a_run_that_never_had_a_bold_file_is_known_again_by_its_fingerprint(tmp_path):
    run, other = make_prepared((), "f1"), make_prepared((), "f2")
    save_trained(tmp_path / "one", records={"seen.json": describe_seen([run])})
    package = load_package(tmp_path / "one")
    assert note_seen(package, run) and not note_seen(package, other)


def test_what_a_package_has_seen_stays_seen_in_what_is_made_of_it(tmp_path):
    first, second, other = (make_prepared((), name) for name in ("f1", "f2", "f3"))
    save_trained(tmp_path / "one", records={"seen.json": describe_seen([first])})
    both = describe_seen([second], load_package(tmp_path / "one"))
    save_trained(tmp_path / "two", records={"seen.json": both})
    package = load_package(tmp_path / "two")
    assert note_seen(package, first) and note_seen(package, second)
    assert not note_seen(package, other)


def make_prepared(checksums: tuple[tuple[str, str], ...], fingerprint: str) -> PreparedRun:
    return PreparedRun(
        folder=Path("prepared"),
        volumes=2,
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
        checksums=checksums,
        fingerprint=fingerprint,
        notices=(),
    )


def test_a_copy_says_its_caution_and_keeps_everything_else(tmp_path):
    save_trained(tmp_path / "one", records={"seen.json": "[]\n"})
    one = load_package(tmp_path / "one")
    copy = copy_package(one, tmp_path / "other", caution="for trying")
    assert [(note.code, note.message) for note in copy.identity.notices] == [
        ("caution", "for trying")
    ]
    assert replace(copy.config, caution=None) == one.config
    assert read_checksums(copy.folder).keys() == read_checksums(one.folder).keys()
    for name, tensor in load_encoder(one).state_dict().items():
        assert torch.equal(tensor, load_encoder(copy).state_dict()[name])


def test_a_copy_takes_another_card(tmp_path):
    save_trained(tmp_path / "one")
    copy = copy_package(load_package(tmp_path / "one"), tmp_path / "other", card="# Ours\n")
    assert (load_package(copy.folder).folder / "card.md").read_text() == "# Ours\n"


def test_a_copy_of_a_copy_keeps_the_caution_and_rounds_once(tmp_path):
    save_trained(tmp_path / "one")
    halved = copy_package(
        load_package(tmp_path / "one"), tmp_path / "two", caution="c", dtype=torch.float16
    )
    again = copy_package(halved, tmp_path / "three", dtype=torch.float16)
    assert again.config.caution == "c"
    assert (again.folder / "model.safetensors").read_bytes() == (
        halved.folder / "model.safetensors"
    ).read_bytes()
