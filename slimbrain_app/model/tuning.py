"""Fine-tuning as the training loop sees it: views of labelled people in, a loss out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.heads import HeadedEncoder
from slimbrain_app.model.objective import Loss, Objective
from slimbrain_app.model.tokens import TokenTable


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelledViews:
    """Views of people, one person's after another's.

    Attributes
    ----------
    patches : Tensor, shape (tokens, values)
        Of all tokens; where there is no table, the views' embeddings, (views, width).
    table : TokenTable or None
    lengths : tuple of int
        Views of each person.
    targets : Tensor, shape (people, outcomes)
        Numbers, standardised, or classes counted from 0.
    weights : Tensor, shape (people, outcomes)
        0 where the outcome is unknown.
    """

    patches: Tensor
    table: TokenTable | None
    lengths: tuple[int, ...]
    targets: Tensor
    weights: Tensor

    def to(self, device: torch.device | str) -> LabelledViews:
        return replace(
            self,
            patches=self.patches.to(device),
            table=self.table and self.table.to(device),
            targets=self.targets.to(device),
            weights=self.weights.to(device),
        )


class Tuning(Objective):
    """Weighted errors of heads, their mean over outcomes.

    Of a number the squared error, of classes the cross-entropy.

    Parameters
    ----------
    network : HeadedEncoder
    outcomes : sequence of str
        One for each head.
    classes : sequence of int
        Likewise: how many there are; 0 for a number.
    """

    def __init__(
        self, network: HeadedEncoder, outcomes: Sequence[str], classes: Sequence[int]
    ) -> None:
        super().__init__()
        self.network = network
        self.kinds = tuple(outcomes)
        self.classes = tuple(classes)

    @property
    def trained(self) -> Encoder:
        return self.network.encoder

    def forward(self, batch: LabelledViews) -> Loss:
        errors = self.find_errors(self.tell(batch), batch.targets) * batch.weights
        return Loss(
            total=errors.sum() / len(self.kinds),
            views=len(batch.lengths),
            kinds=errors.detach().sum(0),
        )

    def tell(self, batch: LabelledViews) -> list[Tensor]:
        """Return what each head says of each person, (people, outputs)."""
        if batch.table is None:
            return self.network.read(batch.patches, batch.lengths)
        outputs: list[Tensor] = self.network(batch.patches, batch.table, batch.lengths)
        return outputs

    def find_errors(self, outputs: Sequence[Tensor], targets: Tensor) -> Tensor:
        """Return each person's error in each outcome, (people, outcomes)."""
        columns = []
        for said, target, classes in zip(outputs, targets.unbind(1), self.classes, strict=True):
            said = said.float()
            if classes > 2:
                column = functional.cross_entropy(said, target.long(), reduction="none")
            elif classes:
                column = functional.binary_cross_entropy_with_logits(
                    said[:, 0], target, reduction="none"
                )
            else:
                column = (said[:, 0] - target).square()
            columns.append(column)
        return torch.stack(columns, 1)
