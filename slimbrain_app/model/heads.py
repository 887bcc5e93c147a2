"""Heads on an encoder: what maps a person's views to outcomes, and what learns below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from slimbrain_app.model.encoder import Attention, Encoder
from slimbrain_app.model.package_heads import ATTENTION_WIDTH
from slimbrain_app.model.tokens import TokenTable


class AttentivePooling(nn.Module):
    """The mean of a person's views, each weighed by what is in it.

    The weights are the softmax of ``query . tanh(map(view))`` (Ilse, Tomczak and Welling 2018,
    arXiv 1802.04712, section 2.4). All are equal to begin with.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, ATTENTION_WIDTH)
        self.query = nn.Parameter(torch.zeros(ATTENTION_WIDTH))

    def forward(self, views: Tensor) -> Tensor:
        """Pool the views (views, width) of one person: (width,)."""
        weights = torch.softmax(torch.tanh(self.map(views)) @ self.query, 0)
        pooled: Tensor = weights @ views
        return pooled


class Head(nn.Module):
    """Pools a person's views, and maps what comes of it to an outcome."""

    def __init__(self, width: int, outputs: int, *, attentive: bool = False) -> None:
        super().__init__()
        self.pooling = AttentivePooling(width) if attentive else None
        self.linear = nn.Linear(width, outputs)

    def forward(self, views: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the outputs for each person, (people, outputs).

        Parameters
        ----------
        views : Tensor, shape (views, width)
            Embeddings, one person's after another's.
        lengths : sequence of int
            Views of each person.
        """
        pool = self.pooling or _average
        pooled = torch.stack([pool(own) for own in torch.split(views, list(lengths))])
        outputs: Tensor = self.linear(pooled)
        return outputs


class HeadedEncoder(nn.Module):
    """An encoder with heads on its embeddings, each for another outcome."""

    def __init__(self, encoder: Encoder, heads: Sequence[Head]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(heads)

    def forward(self, patches: Tensor, table: TokenTable, lengths: Sequence[int]) -> list[Tensor]:
        """Return each head's outputs, (people, outputs)."""
        return self.read(self.encoder(patches, table), lengths)

    def read(self, embeddings: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """Return each head's outputs for embeddings that are at hand."""
        return [head(embeddings, lengths) for head in self.heads]


class LowRank(nn.Module):
    """A linear map that stays as it is, and beside it a change of low rank that learns.

    Hu and others 2021, arXiv 2106.09685, with alpha equal to the rank. The change is 0 to begin
    with.
    """

    def __init__(self, fixed: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.fixed = fixed.requires_grad_(False)
        down = torch.randn(rank, fixed.in_features, generator=generator)
        self.down = nn.Parameter(down * fixed.in_features**-0.5)
        self.up = nn.Parameter(torch.zeros(fixed.out_features, rank))

    def forward(self, values: Tensor) -> Tensor:
        changed = functional.linear(functional.linear(values, self.down), self.up)
        mapped: Tensor = self.fixed(values) + changed
        return mapped

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """Return the one linear map that does the same."""
        self.fixed.weight += self.up @ self.down
        return self.fixed


def add_low_rank(encoder: Encoder, rank: int, seed: int) -> None:
    """Let nothing of an encoder learn but a change of low rank to each map of its attention."""
    generator = torch.Generator().manual_seed(seed)
    encoder.requires_grad_(False)
    for attention in _list_attention(encoder):
        for name in ("qkv", "proj"):
            setattr(attention, name, LowRank(getattr(attention, name), rank, generator))


def merge_low_rank(encoder: Encoder) -> None:
    """Take `add_low_rank` back, what was learnt included."""
    for attention in _list_attention(encoder):
        for name in ("qkv", "proj"):
            setattr(attention, name, getattr(attention, name).merge())


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
    heads: the last block and the final norm have the rate, each block before it ``decay`` of the
    next one's, positions and patch embedding that of the first block once more. Biases, norms and
    positions have no weight decay.

    Parameters
    ----------
    model : HeadedEncoder
    rate, head_rate : float
        Of the last block and of the heads.
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


def _average(views: Tensor) -> Tensor:
    return views.mean(0)


def _list_attention(encoder: Encoder) -> Iterator[Attention]:
    return (module for module in encoder.modules() if isinstance(module, Attention))


def _count_layers_above(name: str, blocks: int) -> int | None:
    """Return how many blocks lie between a parameter and the heads; None for the heads' own."""
    part, _, rest = name.removeprefix("encoder.").partition(".")
    if name.startswith("heads."):
        return None
    if part == "encoder_norm":
        return 0
    return blocks - 1 - int(rest.partition(".")[0]) if part == "blocks" else blocks
