"""Every trainable parameter once, none other; decay where it belongs; precision by device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.jepa import JEPA, Jepa
from slimbrain_app.model.mae import Mae, MaeSettings
from slimbrain_app.model.presets import PRESETS
from slimbrain_app.training.optimiser import (
    choose_precision,
    group_parameters,
    list_parameters,
    make_optimiser,
    make_scaler,
    set_rates,
)


def make_jepa(preset):
    return Jepa(Encoder(PRESETS[preset]), JEPA[preset])


def make_mae(preset):
    return Mae(Encoder(PRESETS[preset]), MaeSettings())


@pytest.fixture(
    params=[(make, preset) for make in (make_jepa, make_mae) for preset in PRESETS],
    ids=lambda param: f"{param[0].__name__[5:]}-{param[1]}",
)
def objective(request):
    make, preset = request.param
    if preset == "tiny":
        return make(preset)
    with torch.device("meta"):
        return make(preset)


def test_every_trainable_parameter_is_in_exactly_one_group(objective):
    groups = group_parameters(objective, 0.05)
    counts = Counter(id(parameter) for group in groups for parameter in group["params"])
    trainable = {id(parameter) for parameter in objective.parameters() if parameter.requires_grad}
    assert set(counts) == trainable
    assert set(counts.values()) == {1}


def test_nothing_of_a_target_encoder_is_in_the_optimiser():
    jepa = make_jepa("tiny")
    given = {id(one) for one in list_parameters(make_optimiser(group_parameters(jepa, 0.05), 1e-3))}
    assert not given & {id(parameter) for parameter in jepa.target.parameters()}
    assert {id(one) for one in jepa.context.parameters() if one.requires_grad} < given


def test_biases_norms_positions_and_mask_tokens_do_not_decay_and_all_else_does(objective):
    decaying, other = (group["params"] for group in group_parameters(objective, 0.05))
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    spared = {names[id(parameter)] for parameter in other}
    words = ("bias", "norm", "pos_embed", "mask_token")
    assert all(any(word in name for word in words) for name in spared)
    assert not any(word in names[id(one)] for one in decaying for word in words)
    assert any("mask_token" in name for name in spared)
    assert {name.rpartition(".")[2] for name in spared if "pos_embed" in name} == {
        "pos_embed_spatial",
        "pos_embed_temporal",
    }


def test_decay_shrinks_weights_and_leaves_the_rest():
    layer = nn.Linear(3, 3)
    before = {name: value.detach().clone() for name, value in layer.named_parameters()}
    optimiser = make_optimiser(group_parameters(layer, weight_decay=0.5), rate=0.1)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    torch.testing.assert_close(layer.weight.detach(), 0.95 * before["weight"])
    assert torch.equal(layer.bias, before["bias"])


def test_each_group_gets_a_share_of_its_own_peak():
    body, head = nn.Linear(2, 2), nn.Linear(2, 1)
    groups = [
        {"params": list(body.parameters()), "lr": 1e-4},
        {"params": list(head.parameters()), "lr": 5e-4},
    ]
    optimiser = make_optimiser(groups, rate=1.0)
    assert set_rates(optimiser, 0.5) == pytest.approx(2.5e-4)
    assert set_rates(optimiser, 0.1) == pytest.approx(5e-5)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([1e-5, 5e-5])


def test_peaks_survive_a_checkpoint():
    layer = nn.Linear(2, 2)
    optimiser = make_optimiser(group_parameters(layer, 0.05), rate=1e-3)
    set_rates(optimiser, 0.01)
    other = make_optimiser(group_parameters(layer, 0.05), rate=1e-3)
    other.load_state_dict(optimiser.state_dict())
    assert set_rates(other, 1.0) == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("asked", "device", "native", "expected"),
    [
        ("auto", "cpu", True, torch.float32),
        ("auto", "mps", True, torch.float32),
        ("auto", "cuda", True, torch.bfloat16),
        ("auto", "cuda", False, torch.float16),
        ("float16", "cpu", True, torch.float16),
        ("bfloat16", "cpu", True, torch.bfloat16),
        ("float32", "cuda", True, torch.float32),
    ],
)
def test_precision_is_what_was_asked_for_or_what_the_device_has(
    monkeypatch, asked, device, native, expected
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert choose_precision(asked, torch.device(device)) == expected


def test_only_float16_is_scaled():
    cpu = torch.device("cpu")
    assert make_scaler(torch.float16, cpu).is_enabled()
    assert not make_scaler(torch.bfloat16, cpu).is_enabled()
    assert not make_scaler(torch.float32, cpu).is_enabled()
