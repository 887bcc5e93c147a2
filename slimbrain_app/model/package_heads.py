"""Heads in a model package: ``heads.json`` says whom they tell, ``heads.safetensors`` how.

For each head ``OUTCOME.weight`` (outputs, width) and ``OUTCOME.bias`` (outputs,), for raw
embeddings; of one that pools by attention ``OUTCOME.map`` (hidden, width), ``OUTCOME.shift`` and
``OUTCOME.query`` (hidden,); for all of them ``reference.mean`` (width,), ``reference.precision``
(width, width) and ``reference.limit`` (1,). All are float32. None of it needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slimbrain_app.model.parts import check_shapes, read_part, refuse_part, write_part
from slimbrain_app.records import Head

HEADS = "heads.json"
HEAD_WEIGHTS = "heads.safetensors"

# Of the map by which attentive pooling looks at an embedding.
ATTENTION_WIDTH = 64
_ATTENTION = ("map", "shift", "query")

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Where embeddings of the people that heads were fitted to lie.

    Attributes
    ----------
    mean : ndarray, float32, shape (width,)
    precision : ndarray, float32, shape (width, width)
    limit : float
        An embedding e is out of distribution if (e - mean)' precision (e - mean) is above.
    """

    mean: Floats
    precision: Floats
    limit: float


@dataclass(frozen=True, slots=True, eq=False)
class Attention:
    """How a head weighs views: by the softmax of ``query . tanh(map view + shift)``.

    Attributes
    ----------
    map : ndarray, float32, shape (hidden, width)
    shift, query : ndarray, float32, shape (hidden,)
    """

    map: Floats
    shift: Floats
    query: Floats

    def weigh(self, views: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weight of each view (views, width); their sum is 1.

        Sums are numpy's own, whose rounding doesn't depend on the number of threads.
        """
        rows = np.asarray(views, np.float64)[:, None]
        seen = np.tanh((rows * self.map).sum(axis=2) + self.shift)
        scores = (seen * self.query).sum(axis=1)
        shares = np.exp(scores - scores.max())
        return np.asarray(shares / shares.sum())

    def pool(self, views: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the weighted mean of views (views, width): (width,)."""
        return np.asarray((self.weigh(views)[:, None] * views).sum(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Heads:
    """The heads of a package.

    Attributes
    ----------
    heads : tuple of Head
        Each for another outcome.
    weights, biases : mapping of str to ndarray
        By outcome: float32, shape (outputs, width) and (outputs,), for raw embeddings.
    reference : Reference
    attention : mapping of str to Attention
        By outcome, of heads that pool by it.
    """

    heads: tuple[Head, ...]
    weights: Mapping[str, Floats]
    biases: Mapping[str, Floats]
    reference: Reference
    attention: Mapping[str, Attention] = field(default_factory=dict)


def write_heads(folder: Path, heads: Heads, width: int, covariance: int = 0) -> None:
    """Write both files into a folder that nobody reads yet.

    Widths are those of embeddings and of covariances, as for `read_heads`.

    Raises
    ------
    ValueError
        If they do not fit together, or to these widths, or are not finite.
    """
    from safetensors.numpy import save

    tensors = {
        **{f"{outcome}.weight": values for outcome, values in heads.weights.items()},
        **{f"{outcome}.bias": values for outcome, values in heads.biases.items()},
        **{
            f"{outcome}.{part}": values
            for outcome, attention in heads.attention.items()
            for part, values in asdict(attention).items()
        },
        "reference.mean": heads.reference.mean,
        "reference.precision": heads.reference.precision,
        "reference.limit": np.array([heads.reference.limit]),
    }
    shapes = _list_shapes(heads.heads, width, covariance)
    if {name: values.shape for name, values in tensors.items()} != shapes:
        raise ValueError("the shapes of the heads are not those of their outcomes and the encoder")
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise ValueError("the heads are not finite")
    stored = {name: np.ascontiguousarray(values, np.float32) for name, values in tensors.items()}
    (folder / HEAD_WEIGHTS).write_bytes(save(stored))
    write_part(folder / HEADS, [asdict(head) for head in heads.heads])


def read_heads(folder: Path, width: int, covariance: int = 0) -> Heads:
    """Read the heads of a package.

    Parameters
    ----------
    width : int
        Of its embeddings.
    covariance : int
        Of its covariances; 0 where it has no readout.

    Raises
    ------
    CallRefused
        ``package-bad`` if a head is not understood, or a tensor missing, of another shape or not
        finite.
    """
    from safetensors.numpy import load_file

    described, file = read_part(folder / HEADS, tuple[Head, ...]), folder / HEAD_WEIGHTS
    outcomes = [head.outcome for head in described]
    if not outcomes or len(set(outcomes)) < len(outcomes):
        found = ", ".join(outcomes) or "none"
        raise refuse_part(folder / HEADS, "a head for each of its outcomes", found)
    shapes = _list_shapes(described, width, covariance)
    check_shapes(file, shapes, f"what {HEADS} calls for", ["F32"])
    tensors = load_file(file)
    if bad := [name for name, values in tensors.items() if not np.isfinite(values).all()]:
        raise refuse_part(file, "finite numbers", f"others in {', '.join(sorted(bad))}")
    return Heads(
        heads=described,
        weights={outcome: tensors[f"{outcome}.weight"] for outcome in outcomes},
        biases={outcome: tensors[f"{outcome}.bias"] for outcome in outcomes},
        reference=Reference(
            tensors["reference.mean"],
            tensors["reference.precision"],
            float(tensors["reference.limit"][0]),
        ),
        attention={
            head.outcome: Attention(*(tensors[f"{head.outcome}.{part}"] for part in _ATTENTION))
            for head in described
            if head.pooling == "attention"
        },
    )


def _list_shapes(
    heads: tuple[Head, ...], width: int, covariance: int
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "reference.mean": (width,),
        "reference.precision": (width, width),
        "reference.limit": (1,),
    }
    for head in heads:
        read = covariance if head.pooling == "covariance" else width
        shapes[f"{head.outcome}.weight"] = (head.outputs, read)
        shapes[f"{head.outcome}.bias"] = (head.outputs,)
        if head.pooling == "attention":
            shapes[f"{head.outcome}.map"] = (ATTENTION_WIDTH, width)
            shapes[f"{head.outcome}.shift"] = shapes[f"{head.outcome}.query"] = (ATTENTION_WIDTH,)
    return shapes
