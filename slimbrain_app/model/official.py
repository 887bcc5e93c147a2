"""The released SLIM-Brain checkpoint: into a package and back, and a start for ``base``.

The released training code saves pickles that hold more than weights: optimiser, scheduler,
settings. Here only tensors and plain types are read. numpy scalars, which the scheduler leaves in
such files, come in as empty stand-ins; anything else in a pickle is refused before it is called.

The names are those of public Hiera, the shapes follow from the published settings. Which of several
spellings a file uses depends on the script that wrote it, so all known ones are read. One is
written.
"""

from __future__ import annotations

import itertools
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import sha256_of, whole_file
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.packages import Config, Package, load_encoder, save_package
from slimbrain_app.model.presets import CONTRACTS, PRESETS, Deletion

CONTAINERS = (
    "model_state_dict",
    "model",
    "state_dict",
    "encoder",
    "context_encoder",
    "target_encoder",
)
PREFIXES = ("module", "_orig_mod", "encoder", "context_encoder", "target_encoder", "backbone")
# Heads, and the parts of the pretraining network that embeddings have no use for.
BESIDE = ("head.", "decoder", "mask_token", "multi_scale", "predictor.")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_PATCHES = "patch_embed.proj.weight"
_PATCH_SHAPES = ((64, 1, 1, 4, 4, 4), (64, 1, 4, 4, 4), (64, 64))
_WHOLE = "use the file as it was released, whole"

Names = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The encoder in a released file.

    Attributes
    ----------
    weights : dict of str to Tensor
        Under the names of `Encoder`, float32.
    place : str
        Where in the file they lay: containers and prefixes, with dots.
    ignored : tuple of str
        All else in the file, by name.
    sha256 : str
        Of the file.
    """

    weights: Names
    place: str
    ignored: tuple[str, ...]
    sha256: str


class _Discarded:
    """Stands in for a numpy scalar or dtype in a pickle; keeps nothing of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_STAND_INS = (
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
)


def read_checkpoint(file: Path) -> Checkpoint:
    """Read the encoder's weights out of a released file; nothing in it is executed.

    Where the file holds a context and a target encoder, the target is taken: it is the one whose
    features the pretraining predicts.

    Raises
    ------
    CallRefused
        ``package-missing`` without a file; ``package-bad`` if it holds anything but tensors and
        plain types, or not exactly the tensors of the official encoder, each by name.
    """
    if not file.is_file():
        raise CallRefused(
            "package-missing",
            file=file,
            expected="a released checkpoint",
            found="no such file",
            advice="check the path",
        )
    states, plain = _sort_entries(_load(file))
    place = _choose_state(file, states)
    elsewhere = [_join(at, name) for at, state in states.items() if at != place for name in state]
    weights, surplus = _fit(file, states[place])
    return Checkpoint(
        weights=weights,
        place=place,
        ignored=tuple(sorted(_printable(name) for name in [*plain, *elsewhere, *surplus])),
        sha256=sha256_of(file),
    )


def convert_checkpoint(
    file: Path, folder: Path, deletion: Deletion = "unit"
) -> tuple[Package, Checkpoint]:
    """Make a package of preset ``official`` from a released file, float32 as it is there.

    Parameters
    ----------
    file : Path
    folder : Path
        Its name is the package's.
    deletion : {"unit", "none", "token"}
        What the encoder leaves out where there is no brain. ``unit`` is what the released network
        can do; with ``token`` it computes something that it was not trained for.

    Raises
    ------
    CallRefused
        As `read_checkpoint` and `save_package`.
    """
    checkpoint = read_checkpoint(file)
    config = Config(
        preset="official",
        trained=True,
        seed=None,
        contract=CONTRACTS["official"],
        encoder=replace(PRESETS["official"], deletion=deletion),
        released=True,
    )
    with torch.device("meta"):
        encoder = Encoder(config.encoder)
    encoder.load_state_dict(checkpoint.weights, strict=True, assign=True)
    card = _converted_card(folder.name, file.name, checkpoint)
    return save_package(folder, config, encoder, card=card), checkpoint


def export_checkpoint(package: Package, file: Path) -> None:
    """Write a package's encoder as the released code reads it.

    Raises
    ------
    CallRefused
        ``usage`` if the package is of other sizes, or the file is already there.
    """
    _check_official(package)
    if file.exists():
        raise CallRefused(
            "usage",
            file=file,
            expected="a new file",
            found="one that is there already",
            advice="name another one",
        )
    weights = dict(load_encoder(package).state_dict())
    with whole_file(file) as temporary:
        torch.save({"model_state_dict": weights}, temporary)


def create_base(folder: Path, official: Package) -> Package:
    """Make a package of preset ``base`` that starts from an ``official`` one; see `start_base`.

    It counts as untrained, and wants the channels that its first weights were trained on.

    Raises
    ------
    CallRefused
        ``usage`` if the package is of other sizes, or the folder is no package.
    """
    _check_official(official)
    config = Config(
        preset="base",
        trained=False,
        seed=None,
        contract=official.contract,
        encoder=PRESETS["base"],
    )
    card = _started_card(folder.name, official)
    return save_package(folder, config, start_base(load_encoder(official)), card=card)


def start_base(official: Encoder) -> Encoder:
    """Return a ``base`` encoder that starts from the weights of an ``official`` one.

    A ``base`` token covers two frames. Its patch kernel is the official one on each of them,
    halved, and its position in time the mean of the two; all else is the same. On a signal that
    stays the same over both frames it is the mean of the two official tokens.
    """
    weights = dict(official.state_dict())
    kernel, positions = weights[_PATCHES], weights["pos_embed_temporal"]
    weights[_PATCHES] = (kernel / 2).repeat_interleave(2, dim=2)
    weights["pos_embed_temporal"] = positions.unflatten(1, (-1, 2)).mean(2)
    with torch.device("meta"):
        base = Encoder(PRESETS["base"])
    base.load_state_dict(
        {name: weight.clone() for name, weight in weights.items()}, strict=True, assign=True
    )
    return base


def _check_official(package: Package) -> None:
    if replace(package.config.encoder, deletion="unit") != PRESETS["official"]:
        raise CallRefused(
            "usage",
            file=package.folder,
            expected="a package with the sizes of official",
            found=f"one of preset {package.preset}",
            advice="choose another package",
        )


def _load(file: Path) -> Mapping[Any, Any]:
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (_Discarded, name) for name in _STAND_INS
    ]
    try:
        with torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About the protocol of a foreign pickle.
            content = torch.load(file, map_location="cpu", weights_only=True)
    # A hostile pickle makes the reader stumble in any way; all of them end here, unexecuted.
    except Exception as error:
        found = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise _bad(file, "a checkpoint of tensors and plain types", found) from error
    if not isinstance(content, Mapping):
        raise _bad(file, "a checkpoint of tensors by name", type(content).__name__)
    return content


def _sort_entries(content: Mapping[Any, Any]) -> tuple[dict[str, Names], list[str]]:
    """Sort tensors by the containers and prefixes before their names; name what is no tensor."""
    states: dict[str, Names] = defaultdict(dict)
    plain = []
    for name, value in _list_entries(content):
        if isinstance(value, Tensor):
            parts = name.split(".")
            outer = list(itertools.takewhile((*CONTAINERS, *PREFIXES).__contains__, parts))
            states[".".join(outer)][".".join(parts[len(outer) :])] = value
        else:
            plain.append(name)
    return states, plain


def _list_entries(content: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    for name, value in content.items():
        if name in CONTAINERS and isinstance(value, Mapping):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield str(name), value


def _choose_state(file: Path, states: Mapping[str, Names]) -> str:
    """Return the place of the one encoder in the file, or of its target encoder."""
    wanted = _wanted_shapes()
    found = [place for place, state in states.items() if not wanted.keys().isdisjoint(state)]
    targets = [place for place in found if "target_encoder" in place.split(".")]
    chosen = found if len(found) == 1 else targets
    if len(chosen) != 1:
        places = ", ".join(place or "the top level" for place in found)
        raise _bad(file, "one encoder with the names of Hiera's parts", places or "none")
    return chosen[0]


def _fit(file: Path, state: Names) -> tuple[Names, list[str]]:
    """Hold a state against the official encoder; return its weights and what lay beside them."""
    wanted = _wanted_shapes()
    weights = {_own_name(name, state): tensor for name, tensor in state.items()}
    surplus = [name for name in weights if name not in wanted and _is_beside(name, weights[name])]
    for name in surplus:
        del weights[name]
    if _PATCHES in weights and tuple(weights[_PATCHES].shape) in _PATCH_SHAPES:
        weights[_PATCHES] = weights[_PATCHES].reshape(_PATCH_SHAPES[0])
    faults = [
        f"{_printable(name)}: {fault}"
        for name in sorted(wanted.keys() | weights.keys())
        if (fault := _find_fault(weights.get(name), wanted.get(name)))
    ]
    if faults:
        shown = "; ".join(faults[:5]) + (f"; and {len(faults) - 5} more" if faults[5:] else "")
        raise _bad(file, f"the {len(wanted)} tensors of the official encoder", shown)
    return {name: weights[name].detach().float().contiguous() for name in wanted}, surplus


def _wanted_shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        encoder = Encoder(PRESETS["official"])
    return {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}


def _own_name(name: str, state: Names) -> str:
    """Return the name by which `Encoder` calls a tensor; plain Hiera says ``norm``."""
    own = name.replace("norm.", "encoder_norm.", 1) if name.startswith("norm.") else name
    return name if own in state else own


def _is_beside(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is known to be no part of the encoder: buffers are whole numbers."""
    return name.startswith((*BESIDE, "norm.")) or not tensor.is_floating_point()


def _find_fault(tensor: Tensor | None, wanted: tuple[int, ...] | None) -> str | None:
    if tensor is None:
        return f"missing, {_shape(wanted or ())} wanted"
    if wanted is None:
        return f"{_shape(tensor.shape)}, not known"
    if tuple(tensor.shape) != wanted:
        return f"{_shape(tensor.shape)} for {_shape(wanted)}"
    if tensor.dtype not in FLOATS or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return f"{tensor.dtype} on {tensor.device}, {tensor.layout}"
    return None if bool(torch.isfinite(tensor).all()) else "values that are not finite"


def _join(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _printable(name: str) -> str:
    return ascii(name)[1:-1]


def _bad(file: Path, expected: str, found: str) -> CallRefused:
    return CallRefused(
        "package-bad", file=file, expected=expected, found=_printable(found), advice=_WHOLE
    )


def _converted_card(name: str, file_name: str, checkpoint: Checkpoint) -> str:
    ignored = "\n".join(f"- `{name}`" for name in checkpoint.ignored) or "Nothing."
    return f"""# {name}

The SLIM-Brain encoder (arXiv 2512.21881), converted from a checkpoint in the released layout.

|  |  |
| --- | --- |
| licence | unknown: neither the released code nor its weights state one |
| source | `{_printable(file_name)}`, SHA-256 {checkpoint.sha256} |
| taken from | `{_printable(checkpoint.place) or "the top level"}` |
| preset | official |

Without a licence nobody has the right to pass these weights on. Ask their authors.

## What is assumed

The release states neither which MNI152 template and orientation its volumes have nor how their
values are scaled. Assumed are MNI152NLin2009cAsym, RAS+, and one mean and one deviation over all
brain voxels of a run. Whether these hold has not been shown by a known result, so take what the
embeddings say as provisional. Never use them for decisions about anyone's health.

## What the checkpoint held besides

{ignored}
"""


def _started_card(name: str, official: Package) -> str:
    return f"""# {name}

**Untrained** in this form: a `base` encoder that starts from the weights of another package.

|  |  |
| --- | --- |
| licence | that of the weights it starts from; see their card |
| starts from | {official.name}, SHA-256 {official.sha256} |
| preset | base |
| channels | {", ".join(official.contract.channels)} |

Patches span two frames instead of one: their kernel was repeated over both and halved, positions
in time were averaged in pairs. All other weights are as they were. What it computes is close to
what the other package does only where the signal hardly changes within 1.44 s, and background is
left out token by token. It is the starting point of a training, for nothing else.
"""
