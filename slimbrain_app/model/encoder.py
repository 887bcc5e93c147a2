"""The 4D hierarchical encoder: patches of a view in, one embedding out.

Hiera (Ryali and others 2023, arXiv 2306.00989) in four dimensions, as SLIM-Brain (arXiv
2512.21881) uses it: mask-unit attention and query pooling first, global attention last. Only
tokens that exist are computed.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from slimbrain_app.model.packing import Packing, Pooling
from slimbrain_app.model.presets import EncoderSizes
from slimbrain_app.model.tokens import TokenTable

EPSILON = 1e-6
_MLP_RATIO = 4
_POSITION_DEVIATION = 0.02
# Deviation of the Gaussian that filters are blurred with, in a patch's edges.
_BLUR = 0.375


class PatchEmbedding(nn.Module):
    """One linear map of a patch's values, its weight in the shape of a convolution's."""

    def __init__(self, sizes: EncoderSizes) -> None:
        super().__init__()
        self.proj = nn.ParameterDict(
            {
                "weight": torch.zeros(sizes.width, sizes.channels, *sizes.patch),
                "bias": torch.zeros(sizes.width),
            }
        )

    def forward(self, patches: Tensor) -> Tensor:
        return functional.linear(patches, self.proj["weight"].flatten(1), self.proj["bias"])


class Attention(nn.Module):
    """Multi-head attention within the segments of a packing, queries pooled beforehand."""

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width_in, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor, pooling: Pooling | None, packing: Packing) -> Tensor:
        queries, keys, values = self.qkv(tokens).chunk(3, dim=1)
        if pooling is not None:
            queries = pooling.pool(queries)
        attended: Tensor = self.proj(packing.attend(queries, keys, values, self.heads))
        return attended


class Mlp(nn.Module):
    """Two linear maps with an exact GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(functional.gelu(self.fc1(tokens)))
        return mapped


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and beside a shortcut.

    Where the width changes, the shortcut is a linear map of the *normalised* tokens.
    """

    def __init__(self, width_in: int, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width_in, eps=EPSILON)
        self.attn = Attention(width_in, width, heads)
        self.norm2 = nn.LayerNorm(width, eps=EPSILON)
        self.mlp = Mlp(width)
        self.proj = nn.Linear(width_in, width) if width_in != width else None

    def forward(self, tokens: Tensor, pooling: Pooling | None, packing: Packing) -> Tensor:
        normed = self.norm1(tokens)
        shortcut = tokens if self.proj is None else self.proj(normed)
        if pooling is not None:
            shortcut = pooling.pool(shortcut)
        tokens = shortcut + self.attn(normed, pooling, packing)
        mapped: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mapped


class Encoder(nn.Module):
    """The encoder of a preset's sizes, its weights drawn from ``seed``.

    Three things change what it costs and, but for rounding, nothing else: ``checkpointing`` keeps
    only what goes into each block, and computes the rest again on the way back; `compile_maps`;
    and torch's autocast around a call. Embeddings are in the precision of the weights with each.
    """

    def __init__(self, sizes: EncoderSizes, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes
        self.checkpointing = False
        places = math.prod(sizes.grid[1:])
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, places, sizes.width))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, sizes.grid[0], sizes.width))
        self.patch_embed = PatchEmbedding(sizes)
        with torch.random.fork_rng(devices=()):  # Layers draw weights of their own, unasked.
            self.blocks = nn.ModuleList(_blocks(sizes))
        self.encoder_norm = nn.LayerNorm(sizes.embedding_width, eps=EPSILON)
        draw_weights(self, seed)
        smooth_filters(self.patch_embed.proj["weight"])

    def forward(self, patches: Tensor, table: TokenTable) -> Tensor:
        """Embed views.

        Parameters
        ----------
        patches : Tensor, shape (tokens, values)
            Of the table's tokens, in its order; of several views, one after another.
        table : TokenTable

        Returns
        -------
        Tensor, shape (views, embedding width)
            Mean over a view's final cells, then LayerNorm.
        """
        return self.pool_cells(self.encode_cells(patches, table), table)

    def pool_cells(self, cells: Tensor, table: TokenTable) -> Tensor:
        """Return the embeddings of views, given their final cells as `encode_cells` returns them.

        For what reads the cells, too.
        """
        views = torch.split(cells.to(self.encoder_norm.weight.dtype), list(table.lengths))
        embeddings: Tensor = self.encoder_norm(torch.stack([view.mean(0) for view in views]))
        return embeddings

    def map_cells(self, patches: Tensor, table: TokenTable) -> Tensor:
        """Return the final cells, each normed by itself: (cells, embedding width).

        For what asks where: targets of a training, explanations. Their mean is not the embedding,
        whose norm comes after the mean.
        """
        mapped: Tensor = self.encoder_norm(self.encode_cells(patches, table))
        return mapped

    def encode_cells(self, patches: Tensor, table: TokenTable) -> Tensor:
        """Return the final cells before the mean and the norm: (cells, embedding width)."""
        return deque(self._run_stages(patches, table), maxlen=1).pop()

    def encode_stages(self, patches: Tensor, table: TokenTable) -> tuple[Tensor, ...]:
        """Return what each stage ends with: (tokens or cells, the stage's width), first to last.

        `reroll` puts them back into place, with the stage's level of the table.
        """
        return tuple(self._run_stages(patches, table))

    def compile_maps(self, backend: str = "inductor") -> None:
        """Compile what is the same for every table: the MLPs.

        Attention is left as it is: a run's mask decides into how many pieces it is packed, so it
        would have to be compiled for each run.
        """
        for module in self.blocks.modules():
            if isinstance(module, Mlp):
                module.compile(dynamic=True, backend=backend)

    def _run_stages(self, patches: Tensor, table: TokenTable) -> Iterator[Tensor]:
        tokens: Tensor = self.patch_embed(patches) + self._positions(table.tokens)
        blocks = iter(self.blocks)
        for depth, stage in zip(self.sizes.depths, table.stages, strict=True):
            tokens = self._run(next(blocks), tokens, stage.pooling, stage.entry)
            for _ in range(depth - 1):
                tokens = self._run(next(blocks), tokens, None, stage.within)
            yield tokens

    def _run(
        self, block: nn.Module, tokens: Tensor, pooling: Pooling | None, packing: Packing
    ) -> Tensor:
        if self.checkpointing:
            kept: Tensor = checkpoint(block, tokens, pooling, packing, use_reentrant=False)
            return kept
        result: Tensor = block(tokens, pooling, packing)
        return result

    def _positions(self, tokens: Tensor) -> Tensor:
        places = self.pos_embed_spatial.shape[1]
        spatial = functional.embedding(tokens % places, self.pos_embed_spatial[0])
        temporal = functional.embedding(tokens // places, self.pos_embed_temporal[0])
        return spatial + temporal


def draw_weights(module: nn.Module, seed: int) -> None:
    """Draw maps so that they keep the variance of what they are given; biases are 0, norms 1.

    Positions are drawn with a small deviation, as is usual, beside whatever they are added to.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            positions = name.startswith("pos_embed")
            deviation = _POSITION_DEVIATION if positions else parameter[0].numel() ** -0.5
            nn.init.trunc_normal_(parameter, std=deviation, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


@torch.no_grad()
def smooth_filters(filters: Tensor) -> None:
    """Blur the filters of patches in space, each at the size that it had.

    Activity is smooth over millimetres, noise is not: of what a filter of white noise makes of a
    patch, nearly all is noise.

    Parameters
    ----------
    filters : Tensor, shape (width, channels, t, x, y, z)
    """
    if filters.is_meta:  # Of an encoder whose weights are yet to be read; scipy takes time to load.
        return
    from scipy.ndimage import gaussian_filter1d

    blurred = filters
    for axis in (3, 4, 5):
        edge = filters.shape[axis]
        spread = torch.from_numpy(gaussian_filter1d(np.eye(edge), _BLUR * edge)).to(filters)
        blurred = torch.tensordot(blurred, spread, dims=([axis], [0])).movedim(-1, axis)
    axes = tuple(range(1, filters.ndim))
    before, after = (part.square().mean(axes, keepdim=True).sqrt() for part in (filters, blurred))
    filters.copy_(blurred * (before / after))


def _blocks(sizes: EncoderSizes) -> list[Block]:
    blocks: list[Block] = []
    width = sizes.width
    for stage, depth in enumerate(sizes.depths):
        for _ in range(depth):
            blocks.append(Block(width, sizes.width << stage, sizes.heads << stage))
            width = sizes.width << stage
    return blocks
