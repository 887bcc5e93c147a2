"""AdamW over every trainable parameter, and the precision that it is fed from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from slimbrain_app.settings import Precision

# As usual for transformers: the second moment forgets faster than by default (0.999).
_BETAS = (0.9, 0.95)


def group_parameters(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sort what has ``requires_grad`` into two groups: weights of maps, which decay, and the rest.

    Biases, norms, positions and mask tokens add or scale, they do not map; none of them decays.

    Returns
    -------
    list of dict
        With ``params`` and ``weight_decay``; each trainable parameter is in exactly one.
    """
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1 and name.endswith("weight")].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]


def make_optimiser(groups: list[dict[str, Any]], rate: float) -> torch.optim.AdamW:
    """Return AdamW; ``rate`` is the peak of each group that states none of its own as ``lr``."""
    return torch.optim.AdamW(groups, lr=rate, betas=_BETAS)


def list_parameters(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """Return every parameter of the optimiser."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def set_rates(optimiser: torch.optim.Optimizer, share: float) -> float:
    """Set each group's rate to a share of its peak, and return the highest."""
    for group in optimiser.param_groups:
        # The name under which torch's own schedulers keep it, and under which it is saved.
        peak = group.setdefault("initial_lr", group["lr"])
        group["lr"] = peak * share
    return float(max(group["lr"] for group in optimiser.param_groups))


def choose_precision(asked: Precision, device: torch.device) -> torch.dtype:
    """Return what products are computed in.

    ``auto`` is bfloat16 on GPUs that have it, float16 on older ones, float32 elsewhere.
    """
    if asked != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[
            asked
        ]
    if device.type != "cuda":
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16


def make_scaler(precision: torch.dtype, device: torch.device) -> torch.amp.GradScaler:
    """Return what keeps small gradients above zero in float16; in other precisions it rests."""
    return torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
