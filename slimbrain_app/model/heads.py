"""What maps an embedding to an outcome, and how fast each layer below may learn it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.tokens import TokenTable


class HeadedEncoder(nn.Module):
    """An encoder with a head on its embeddings. Another head is put on by assigning it."""

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, patches: Tensor, table: TokenTable) -> Tensor:
        """Return the head's outcomes, one row per view."""
        outcomes: Tensor = self.head(self.encoder(patches, table))
        return outcomes


def group_parameters(
    model: HeadedEncoder,
    *,
    rate: float = 1e-4,
    head_rate: float = 5e-4,
    decay: float = 0.75,
    weight_decay: float = 0.05,
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser: the deeper a layer, the slower it learns.

    Rates and decay are those of the released fine-tuning settings. Layers are counted from the
    head: the last block and the final norm have the rate, each block before it ``decay`` of the
    next one's, positions and patch embedding that of the first block once more. Biases, norms and
    positions have no weight decay.

    Parameters
    ----------
    model : HeadedEncoder
    rate, head_rate : float
        Of the last block and of the head.
    decay : float
    weight_decay : float

    Returns
    -------
    list of dict
        With ``params``, ``lr`` and ``weight_decay``; each parameter that is trained in one.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = _count_layers_above(name, len(model.encoder.blocks))
            own_rate = head_rate if depth is None else rate * decay**depth
            decays = parameter.ndim > 1 and not name.startswith("encoder.pos_embed")
            key = (own_rate, weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": own_rate, "weight_decay": own_decay}
        for (own_rate, own_decay), parameters in groups.items()
    ]


def _count_layers_above(name: str, blocks: int) -> int | None:
    """Return how many blocks lie between a parameter and the head; None for the head's own."""
    part, _, rest = name.removeprefix("encoder.").partition(".")
    if name.startswith("head."):
        return None
    if part == "encoder_norm":
        return 0
    return blocks - 1 - int(rest.partition(".")[0]) if part == "blocks" else blocks
