"""The released layout: what is read, what is refused, and that nothing changes on the way."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slimbrain_app.errors import CallRefused
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.official import (
    convert_checkpoint,
    export_checkpoint,
    read_checkpoint,
    start_base,
)
from slimbrain_app.model.packages import create_package, load_encoder, load_package
from slimbrain_app.model.presets import CONTRACTS, PRESETS

PATCHES = "patch_embed.proj.weight"


def list_shapes() -> dict[str, tuple[int, ...]]:
    """The released layout, written out by hand: widths and the blocks that change them."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed_spatial": (1, 24 * 24 * 24, 64),
        "pos_embed_temporal": (1, 40, 64),
        PATCHES: (64, 1, 1, 4, 4, 4),
        "patch_embed.proj.bias": (64,),
        "encoder_norm.weight": (512,),
        "encoder_norm.bias": (512,),
    }
    before = 64
    for block in range(24):
        width = 64 if block < 2 else 128 if block < 5 else 256 if block < 21 else 512
        maps = [("attn.qkv", 3 * width, before), ("attn.proj", width, width)]
        maps += [("mlp.fc1", 4 * width, width), ("mlp.fc2", width, 4 * width)]
        maps += [("proj", width, before)] if block in (2, 5, 21) else []
        for name, rows, columns in maps:
            shapes[f"blocks.{block}.{name}.weight"] = (rows, columns)
            shapes[f"blocks.{block}.{name}.bias"] = (rows,)
        for name, size in (("norm1", before), ("norm2", width)):
            shapes[f"blocks.{block}.{name}.weight"] = (size,)
            shapes[f"blocks.{block}.{name}.bias"] = (size,)
        before = width
    return shapes


@pytest.fixture(scope="module")
def drawn() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {name: torch.randn(shape, generator=generator) for name, shape in list_shapes().items()}


@pytest.fixture
def weights():
    """A number of its own for each tensor, stored once: small files, every name told apart."""
    return {
        name: torch.tensor(float(number)).expand(shape)
        for number, (name, shape) in enumerate(list_shapes().items())
    }


@pytest.fixture(scope="module")
def official():
    return Encoder(PRESETS["official"], seed=4)


def released(weights) -> dict[str, object]:
    """A file as the released training code saves it, numpy scalars and all."""
    rate = np.float64(1e-4) * (1 + np.cos(np.float64(0.3)))
    return {
        "epoch": 40,
        "model_state_dict": OrderedDict(weights),
        "optimizer_state_dict": {
            "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(64)}},
            "param_groups": [{"lr": rate, "params": [0]}],
        },
        "scheduler_state_dict": {"last_lr": [rate], "step": np.int64(3)},
        "best_metric": np.float32(0.9),
        "best_loss": float("inf"),
        "config": {"model": {"embed_dim": 64, "stages": [2, 3, 16, 3]}},
        "train_stats": {"loss": np.float64(0.1)},
        "val_stats": {},
    }


def save(content, folder: Path) -> Path:
    torch.save(content, folder / "best_model.pth")
    return folder / "best_model.pth"


def refuse(content, folder: Path) -> CallRefused:
    file = save(content, folder)
    with pytest.raises(CallRefused) as caught:
        read_checkpoint(file)
    assert caught.value.reason == "package-bad"
    assert caught.value.file == str(file)
    return caught.value


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_the_layout_counts_300_tensors_and_23336512_parameters(weights):
    assert len(weights) == 300
    assert sum(tensor.numel() for tensor in weights.values()) == 23_336_512


def test_a_released_file_comes_in_and_goes_out_to_the_bit(drawn, tmp_path):
    package, _ = convert_checkpoint(save(released(drawn), tmp_path), tmp_path / "slim")
    assert package == load_package("slim", [tmp_path])
    assert_same(load_encoder(package).state_dict(), drawn)
    export_checkpoint(package, tmp_path / "back.pth")
    content = torch.load(tmp_path / "back.pth", weights_only=True)
    assert list(content) == ["model_state_dict"]
    assert_same(content["model_state_dict"], drawn)
    again, _ = convert_checkpoint(tmp_path / "back.pth", tmp_path / "again")
    assert (again.folder / "model.safetensors").read_bytes() == (
        package.folder / "model.safetensors"
    ).read_bytes()


def test_a_converted_package_is_official_trained_and_without_a_known_licence(weights, tmp_path):
    package, _ = convert_checkpoint(save(released(weights), tmp_path), tmp_path / "slim")
    assert (package.preset, package.trained, package.config.seed) == ("official", True, None)
    assert package.contract == CONTRACTS["official"]
    assert package.config.encoder == PRESETS["official"]
    assert "| licence | unknown" in (package.folder / "card.md").read_text()


@pytest.mark.parametrize(
    ("deletion", "codes"),
    [("none", ["assumed-input"]), ("token", ["assumed-input", "other-deletion"])],
)
def test_the_chosen_deletion_is_stated_and_an_untrained_one_warned_about(
    weights, tmp_path, deletion, codes
):
    file = save(released(weights), tmp_path)
    package, _ = convert_checkpoint(file, tmp_path / "slim", deletion)
    assert package.config.encoder.deletion == deletion
    assert [notice.code for notice in package.identity.notices] == codes
    export_checkpoint(package, tmp_path / "back.pth")
    assert_same(read_checkpoint(tmp_path / "back.pth").weights, weights)


@pytest.mark.parametrize(
    ("container", "prefix"),
    [
        ("model_state_dict", ""),
        ("model", "module."),
        ("state_dict", "_orig_mod."),
        ("encoder", "module._orig_mod.encoder."),
        ("context_encoder", "module."),
        ("target_encoder", ""),
    ],
)
def test_containers_and_prefixes_are_seen_through(weights, tmp_path, container, prefix):
    state = {prefix + name: tensor for name, tensor in weights.items()}
    checkpoint = read_checkpoint(save({container: state}, tmp_path))
    assert checkpoint.place == f"{container}.{prefix}".removesuffix(".")
    assert_same(checkpoint.weights, weights)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.context_encoder."])
def test_weights_may_lie_at_the_top_level(weights, tmp_path, prefix):
    state = {prefix + name: tensor for name, tensor in weights.items()}
    assert_same(read_checkpoint(save(state, tmp_path)).weights, weights)


@pytest.mark.parametrize("together", [True, False])
def test_of_context_and_target_the_target_is_taken_and_named(weights, tmp_path, together):
    context = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    both = {"context_encoder": context, "target_encoder": weights}
    if together:
        both = {
            "model_state_dict": {
                f"{place}.{name}": tensor
                for place, state in both.items()
                for name, tensor in state.items()
            }
        }
    checkpoint = read_checkpoint(save(both, tmp_path))
    assert checkpoint.place.endswith("target_encoder")
    assert_same(checkpoint.weights, weights)
    assert sum("context_encoder.blocks.23" in name for name in checkpoint.ignored) == 12


def test_two_encoders_are_not_chosen_between(weights, tmp_path):
    refusal = refuse({"model": weights, "state_dict": weights}, tmp_path)
    assert "model, state_dict" in refusal.found


@pytest.mark.parametrize("shape", [(64, 1, 1, 4, 4, 4), (64, 1, 4, 4, 4), (64, 64)])
def test_each_layout_of_the_patch_embedding_gives_the_same_weights(weights, tmp_path, shape):
    varied = weights | {PATCHES: weights[PATCHES].reshape(shape)}
    assert_same(read_checkpoint(save({"model": varied}, tmp_path)).weights, weights)


def test_the_last_norm_may_have_plain_hieras_name(weights, tmp_path):
    renamed = {name.replace("encoder_norm", "norm"): value for name, value in weights.items()}
    assert_same(read_checkpoint(save({"model": renamed}, tmp_path)).weights, weights)


def test_the_encoders_own_norm_goes_before_another(weights, tmp_path):
    both = weights | {"norm.weight": torch.zeros(512), "norm.bias": torch.zeros(512)}
    checkpoint = read_checkpoint(save({"model": both}, tmp_path))
    assert_same(checkpoint.weights, weights)
    assert checkpoint.ignored == ("norm.bias", "norm.weight")


def test_everything_that_was_ignored_is_on_the_card(weights, tmp_path):
    content = released(
        weights
        | {
            "head.projection.weight": torch.zeros(2, 512),
            "mask_token": torch.zeros(1, 1, 512),
            "decoder_pos_embed": torch.zeros(1, 2160, 512),
            "decoder_blocks.0.attn.qkv.weight": torch.zeros(3, 3),
            "multi_scale_fusion_heads.0.weight": torch.zeros(2, 2),
            "predictor.0.weight": torch.zeros(2, 2),
            "relative_position": torch.zeros(2, dtype=torch.int64),
        }
    )
    package, checkpoint = convert_checkpoint(save(content, tmp_path), tmp_path / "slim")
    assert {
        "head.projection.weight",
        "mask_token",
        "decoder_pos_embed",
        "decoder_blocks.0.attn.qkv.weight",
        "multi_scale_fusion_heads.0.weight",
        "predictor.0.weight",
        "relative_position",
        "optimizer_state_dict",
        "scheduler_state_dict",
        "epoch",
        "best_metric",
        "best_loss",
        "config",
        "train_stats",
        "val_stats",
    } == set(checkpoint.ignored)
    card = (package.folder / "card.md").read_text()
    assert all(f"- `{name}`\n" in card for name in checkpoint.ignored)


@pytest.mark.parametrize("name", ["pos_embed_temporal", "blocks.21.proj.bias", PATCHES])
def test_a_missing_tensor_is_refused_by_name(weights, tmp_path, name):
    del weights[name]
    assert f"{name}: missing" in refuse({"model": weights}, tmp_path).found


@pytest.mark.parametrize("name", ["blocks.24.norm1.weight", "blocks.0.proj.weight", "pos_embed"])
def test_a_tensor_of_an_unknown_name_is_refused_by_name(weights, tmp_path, name):
    weights[name] = torch.zeros(64)
    assert f"{name}: 64, not known" in refuse({"model": weights}, tmp_path).found


def transpose(tensor):
    return tensor.transpose(0, -1).contiguous()


@pytest.mark.parametrize("name", ["blocks.3.mlp.fc1.weight", "pos_embed_spatial", PATCHES])
def test_a_transposed_tensor_is_refused_by_name(weights, tmp_path, name):
    weights[name] = transpose(weights[name])
    assert name in refuse({"model": weights}, tmp_path).found


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to(torch.float64),
        lambda tensor: tensor.to(torch.int32),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: torch.full_like(tensor, torch.nan),
    ],
    ids=["float64", "whole numbers", "sparse", "meta", "nan"],
)
def test_numbers_of_another_kind_are_refused_by_name(weights, tmp_path, change):
    weights["blocks.7.norm1.weight"] = change(weights["blocks.7.norm1.weight"])
    assert "blocks.7.norm1.weight" in refuse({"model": weights}, tmp_path).found


@pytest.mark.parametrize(
    "content",
    [{}, [], torch.zeros(3), {"model": {}}, {"model": {"weight": torch.zeros(3)}}, {"epoch": 3}],
    ids=["nothing", "list", "tensor", "empty", "other names", "number"],
)
def test_a_file_without_an_encoder_is_refused(content, tmp_path):
    refuse(content, tmp_path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CallRefused, match="package-missing"):
        read_checkpoint(tmp_path / "none.pth")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_function_is_refused_and_not_executed(weights, tmp_path, zipped):
    sprung = tmp_path / "sprung"
    content = {"model": weights, "config": Trap(sprung)}
    file = tmp_path / "best_model.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CallRefused, match="package-bad"):
        read_checkpoint(file)
    assert not sprung.exists()
    torch.load(file, weights_only=False)
    assert sprung.exists(), "the trap does not work"


def test_a_whole_network_is_refused(tmp_path):
    refuse({"model": torch.nn.Linear(2, 2)}, tmp_path)


def test_a_plain_pickle_with_a_numpy_array_is_refused(tmp_path):
    (tmp_path / "best_model.pth").write_bytes(pickle.dumps({"model": np.zeros(3)}, protocol=2))
    with pytest.raises(CallRefused, match="package-bad"):
        read_checkpoint(tmp_path / "best_model.pth")


@given(st.binary(max_size=200), st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused(tmp_path, content, like_a_pickle):
    file = tmp_path / "any.pth"
    file.write_bytes(b"\x80\x02" * like_a_pickle + content)
    with pytest.raises(CallRefused, match="package-bad"):
        read_checkpoint(file)


@pytest.mark.parametrize("name", ["\x1b[2Jhead.weight", "head.`rm`\nweight"])
def test_a_name_can_not_write_to_the_terminal_or_leave_its_line(weights, tmp_path, name):
    name = "head." + name
    checkpoint = read_checkpoint(save({"model": weights | {name: torch.zeros(1)}}, tmp_path))
    assert all(ignored.isprintable() for ignored in checkpoint.ignored)


def test_other_sizes_are_not_exported(tmp_path):
    package = create_package(tmp_path / "small", "tiny")
    with pytest.raises(CallRefused, match="usage"):
        export_checkpoint(package, tmp_path / "small.pth")
    assert not (tmp_path / "small.pth").exists()


def test_an_export_never_replaces_a_file(tmp_path):
    package = create_package(tmp_path / "whole", "official")
    (tmp_path / "precious.pth").write_text("precious")
    with pytest.raises(CallRefused, match="usage"):
        export_checkpoint(package, tmp_path / "precious.pth")
    assert (tmp_path / "precious.pth").read_text() == "precious"


def test_a_base_token_is_the_mean_of_the_two_official_ones_on_a_steady_signal(official, generator):
    base = start_base(official)
    frames = torch.randn(20, 1, 64, generator=generator)
    patches = frames.expand(20, 2, 64)  # Of one place: frame pairs, one patch of 64 voxels.
    place = 777
    pairs = [
        official.patch_embed(patches[:, half]) + official.pos_embed_spatial[0, place]
        for half in (0, 1)
    ]
    pairs = [pair + official.pos_embed_temporal[0, half::2] for half, pair in enumerate(pairs)]
    own = base.patch_embed(patches.flatten(1)) + base.pos_embed_spatial[0, place]
    own = own + base.pos_embed_temporal[0]
    mean = (pairs[0] + pairs[1]) / 2
    assert (own - mean).abs().max() <= 1e-6 * mean.abs().max()


def test_base_starts_with_every_other_weight_of_official(official):
    base = start_base(official).state_dict()
    changed = {PATCHES, "pos_embed_temporal"}
    for name, weight in official.state_dict().items():
        assert name in changed or torch.equal(base[name], weight), name


def test_a_base_that_started_from_official_shares_no_memory_with_it(official):
    base = start_base(official)
    with torch.no_grad():
        base.blocks[0].norm1.weight.zero_()
    assert (official.blocks[0].norm1.weight == 1).all()
