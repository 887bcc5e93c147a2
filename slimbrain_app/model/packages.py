"""Model packages on disk: weights, sizes, contract and card in a folder, under checksums.

::

    NAME/
    ├── model.safetensors       the encoder
    ├── extractor.safetensors   the temporal extractor, where there is one
    ├── readout.safetensors     which places move together, where that is read
    ├── heads.safetensors       what maps embeddings to outcomes, where there is something
    ├── heads.json              which outcomes, and how well
    ├── config.json             preset, sizes, contract, whether trained
    ├── card.md                 for people: origin, licence, what it is not for
    ├── ...                     of a trained package: its training's record
    └── checksums.json          SHA-256 of each file

Weights are data: nothing in a package is ever executed. A training keeps its state in
``checkpoints/``, in the same folder, until the package is whole.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from slimbrain_app.errors import CallRefused
from slimbrain_app.files import (
    TEMPORARY,
    cached_packages,
    parse_json,
    remove_leftovers,
    sha256_of,
    whole_folder,
)
from slimbrain_app.model.encoder import Encoder
from slimbrain_app.model.extractor import ExtractorSizes, TemporalExtractor
from slimbrain_app.model.package_heads import (
    HEAD_WEIGHTS,
    HEADS,
    Heads,
    read_heads,
    write_heads,
)
from slimbrain_app.model.parts import (
    NEWER,
    check_shapes,
    format_shape,
    read_part,
    refuse_part,
    write_part,
)
from slimbrain_app.model.presets import CONTRACTS, PRESETS, EncoderSizes
from slimbrain_app.model.readout import READOUT, Readout, read_readout, write_readout
from slimbrain_app.records import Contract, Head, ModelIdentity, Notice, PreparedRun

MODEL = "model.safetensors"
EXTRACTOR = "extractor.safetensors"
CONFIG = "config.json"
CARD = "card.md"
CHECKSUMS = "checksums.json"
# SHA-256 of the BOLD files that the weights, or decisions about them, were drawn from: no names.
# Of runs that were simulated as prepared ones, their fingerprints.
SEEN = "seen.json"
CHECKPOINTS = "checkpoints"

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What ``config.json`` states.

    ``seed`` is that of the first weights, where it is known; ``released`` says that they come from
    a checkpoint of SLIM-Brain's authors; ``caution`` is said wherever the package is used.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    preset: str
    trained: bool
    seed: int | None
    contract: Contract
    encoder: EncoderSizes
    extractor: ExtractorSizes | None = None
    released: bool = False
    caution: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """A package that was found whole. ``sha256`` stands for all of its files."""

    name: str
    folder: Path
    sha256: str
    config: Config
    heads: tuple[Head, ...] = ()

    @property
    def contract(self) -> Contract:
        return self.config.contract

    @property
    def preset(self) -> str:
        return self.config.preset

    @property
    def trained(self) -> bool:
        return self.config.trained

    @property
    def has_extractor(self) -> bool:
        return self.config.extractor is not None

    @property
    def has_readout(self) -> bool:
        return (self.folder / READOUT).exists()

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(
            name=self.name,
            preset=self.preset,
            sha256=self.sha256,
            trained=self.trained,
            contract=self.contract,
            notices=_list_notices(self.config),
            heads=self.heads,
        )


def load_package(name_or_folder: str | Path, search: Sequence[Path] = ()) -> Package:
    """Find a package and check all of it but the values of the networks' weights.

    Parameters
    ----------
    name_or_folder : str or Path
        A name; or a folder, which is a Path or a text with a slash in it.
    search : sequence of Path
        Folders that hold packages, looked through in this order, before those fetched from a hub
        and those installed.

    Raises
    ------
    CallRefused
        ``package-missing``; ``package-bad`` if a file is missing, damaged or not understood, or
        the weights are not those of the stated sizes.
    """
    folder = _find(name_or_folder, [*search, cached_packages(), installed_packages()])
    digests = _check_files(folder)
    config = _read_config(folder)
    if (EXTRACTOR in digests) != (config.extractor is not None):
        raise refuse_part(folder / CONFIG, f"sizes of an extractor and {EXTRACTOR}", "only one")
    if (HEADS in digests) != (HEAD_WEIGHTS in digests):
        raise refuse_part(folder / HEADS, f"{HEADS} and {HEAD_WEIGHTS}", "only one")
    with torch.device("meta"):
        _check_tensors(folder / MODEL, Encoder(config.encoder))
        if config.extractor is not None:
            _check_tensors(folder / EXTRACTOR, TemporalExtractor(config.extractor))
    package = Package(
        name=folder.name,
        folder=folder,
        sha256=digest_package(digests),
        config=config,
    )
    load_readout(package)
    heads = load_heads(package)
    return replace(package, heads=heads.heads) if heads else package


def find_made(folder: Path, record: str, origin: object, of: str) -> Package | None:
    """Return a folder's package if an earlier call made it of just this; None if there is none.

    For the holder of the folder's lock: what a stop has left of checkpoints goes.

    Parameters
    ----------
    record : str
        The package's file that tells what it was made of.
    origin
        What that must be.
    of : str
        What messages call that.

    Raises
    ------
    CallRefused
        ``usage`` if another package stands in its place.
    """
    if not (folder / CHECKSUMS).exists():
        return None
    try:
        told = parse_json((folder / record).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None
    if told != origin:
        raise CallRefused(
            "usage",
            file=folder,
            expected=f"no package of this name, or one made of the same {of} with these settings",
            found="another one",
            advice="choose another --package-name, or remove the folder",
        )
    remove_leftovers(folder)
    return load_package(folder)


def load_encoder(package: Package, device: torch.device | str = "cpu") -> Encoder:
    """Return the package's encoder, in float32 and ready to use."""
    with torch.device("meta"):
        encoder = Encoder(package.config.encoder)
    return _load_weights(encoder, package.folder / MODEL, device)


def load_extractor(
    package: Package, device: torch.device | str = "cpu"
) -> TemporalExtractor | None:
    """Return the package's temporal extractor, in float32, or None if it has none."""
    if package.config.extractor is None:
        return None
    with torch.device("meta"):
        extractor = TemporalExtractor(package.config.extractor)
    return _load_weights(extractor, package.folder / EXTRACTOR, device)


def load_heads(package: Package) -> Heads | None:
    """Return the package's heads, or None if it has none.

    Raises
    ------
    CallRefused
        ``package-bad``.
    """
    if not (package.folder / HEADS).exists():
        return None
    readout = load_readout(package)
    return read_heads(
        package.folder, package.config.encoder.embedding_width, readout.width if readout else 0
    )


def load_readout(package: Package) -> Readout | None:
    """Return the package's readout of covariance, or None if it has none.

    Raises
    ------
    CallRefused
        ``package-bad``.
    """
    if not package.has_readout:
        return None
    sizes = package.config.encoder
    times, *space = sizes.final_grid
    return read_readout(package.folder, sizes.embedding_width, times, math.prod(space))


def save_package(
    folder: Path,
    config: Config,
    encoder: Encoder,
    extractor: TemporalExtractor | None = None,
    *,
    readout: Readout | None = None,
    heads: Heads | None = None,
    card: str,
    records: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Package:
    """Write a package, whole or not at all; one that stands there already is replaced.

    Where a training left its ``checkpoints/`` in the folder, they are removed once the package is
    whole, and not before: a call that is killed here can be made again.

    Parameters
    ----------
    folder : Path
        Its name is the package's.
    config : Config
        Its sizes must be those of the networks.
    encoder : Encoder
    extractor : TemporalExtractor, optional
    readout : Readout, optional
        Of this encoder.
    heads : Heads, optional
    card : str
        Markdown for people: origin, licence, what the package is not for.
    records : mapping of str to str, optional
        More text files by name, such as the training's log and `describe_seen`.
    dtype : torch.dtype
        In which the networks' weights are stored; they are computed with in float32.

    Raises
    ------
    CallRefused
        ``usage`` if the folder holds something else than a package.
    """
    networks: dict[str, nn.Module] = {MODEL: encoder}
    if extractor is not None:
        networks[EXTRACTOR] = extractor
    if config.encoder != encoder.sizes or config.extractor != (extractor and extractor.sizes):
        raise ValueError("the sizes in the configuration are not those of the networks")
    texts = {CARD: card, **(records or {})}
    taken = {*networks, READOUT, HEADS, HEAD_WEIGHTS, CONFIG, CHECKSUMS}
    if len(texts) <= len(records or {}) or texts.keys() & taken:
        raise ValueError("a record has the name of another part of the package")
    _check_replaceable(folder)
    training = folder / CHECKPOINTS
    with whole_folder(training / "package" if training.is_dir() else folder) as temporary:
        for name, network in networks.items():
            _save_weights(network, temporary / name, dtype)
        if readout is not None:
            write_readout(temporary, readout)
        if heads is not None:
            width = config.encoder.embedding_width
            write_heads(temporary, heads, width, readout.width if readout else 0)
        write_part(temporary / CONFIG, asdict(config))
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
        digests = {file.name: sha256_of(file) for file in sorted(temporary.iterdir())}
        write_part(temporary / CHECKSUMS, digests)
    if training.is_dir():
        _end_training(folder)
    return load_package(folder)


def create_package(folder: Path, preset: str, seed: int = 0) -> Package:
    """Write an untrained package of a preset, its weights drawn from ``seed``.

    Weights are stored as float16: random numbers lose nothing by rounding.
    """
    config = Config(
        preset=preset,
        trained=False,
        seed=seed,
        contract=CONTRACTS[preset],
        encoder=PRESETS[preset],
    )
    return save_package(
        folder,
        config,
        Encoder(config.encoder, seed),
        card=_untrained_card(folder.name, config),
        dtype=torch.float16,
    )


def copy_package(
    package: Package,
    folder: Path,
    *,
    caution: str | None = None,
    card: str | None = None,
    readout: Readout | None = None,
    dtype: torch.dtype = torch.float32,
) -> Package:
    """Write a package anew: with another caution, card or readout, or in another precision.

    Raises
    ------
    CallRefused
        As of `save_package`.
    """
    return save_package(
        folder,
        replace(package.config, caution=caution or package.config.caution),
        load_encoder(package),
        load_extractor(package),
        readout=readout or load_readout(package),
        heads=load_heads(package),
        card=(package.folder / CARD).read_text(encoding="utf-8") if card is None else card,
        records=_read_records(package),
        dtype=dtype,
    )


def add_heads(
    package: Package,
    folder: Path,
    heads: Heads,
    *,
    encoder: Encoder | None = None,
    card: str,
    records: Mapping[str, str],
) -> Package:
    """Write a package anew with heads in the place of its own.

    Parameters
    ----------
    encoder : Encoder, optional
        One that was trained with these heads, in the place of the package's own; its cells have no
        readout.
    records : mapping of str to str
        Text files, which replace those of the same name.

    Raises
    ------
    CallRefused
        As of `save_package`.
    """
    return save_package(
        folder,
        replace(package.config, trained=True) if encoder else package.config,
        encoder or load_encoder(package),
        load_extractor(package),
        readout=None if encoder else load_readout(package),
        heads=heads,
        card=card,
        records={**_read_records(package), **records},
        dtype=torch.float32 if encoder else _stored_dtype(package),
    )


def read_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 that a package states for each of its files, by plain file name.

    Raises
    ------
    CallRefused
        ``package-bad``.
    """
    file = folder / CHECKSUMS
    if not file.is_file():
        raise refuse_part(file, "the checksums of a whole package", "none")
    try:
        digests = parse_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise refuse_part(file, "JSON", str(error)) from error
    plain = isinstance(digests, dict) and all(
        isinstance(digest, str) and Path(name).name == name and name.isprintable()
        for name, digest in digests.items()
    )
    if not plain:
        raise refuse_part(file, "file names with their SHA-256", "something else")
    return dict(digests)


def describe_seen(recordings: Iterable[PreparedRun], before: Package | None = None) -> str:
    """Return the text of ``seen.json`` for the runs of a training and its validation.

    It tells a BOLD file that was among them, or in the trainings of the package before, and
    nothing of one that isn't at hand.
    """
    digests = {prepared.identity for prepared in recordings}
    digests |= _read_seen(before) if before else set()
    return json.dumps({"sha256": sorted(digests)}, indent=0) + "\n"


def note_seen(package: Package, prepared: PreparedRun) -> tuple[Notice, ...]:
    """Return a notice if the run's BOLD file was used in the package's training."""
    if prepared.identity not in _read_seen(package):
        return ()
    return (
        Notice(
            code="seen-in-training",
            message="the model's weights were trained on this run, or chosen by it: what is found "
            "in its embedding, or predicted, says nothing of runs that the model hasn't seen",
        ),
    )


def digest_package(digests: Mapping[str, str]) -> str:
    """Return the SHA-256 that stands for a whole package, given that of each of its files."""
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def list_packages(search: Sequence[Path] = ()) -> list[Package | CallRefused]:
    """Load every package in the folders that `load_package` looks through, in its order.

    A damaged one is listed by what is wrong with it.
    """
    found: list[Package | CallRefused] = []
    for place in (*search, cached_packages(), installed_packages()):
        for config in sorted(place.glob(f"*/{CONFIG}")):
            try:
                found.append(load_package(config.parent))
            except CallRefused as refusal:
                found.append(refusal)
    return found


def installed_packages() -> Path:
    """Return the folder with the packages that ship with SlimBrain."""
    return Path(str(files("slimbrain_app"))) / "data" / "models"


def _list_notices(config: Config) -> tuple[Notice, ...]:
    """Return what to know of weights: a caution, or how little is known of the released ones."""
    cautions = (Notice(code="caution", message=config.caution),) if config.caution else ()
    if not config.released:
        return cautions
    assumed = Notice(
        code="assumed-input",
        message="orientation, template and scaling of the released model's input are assumed: "
        "no known result has been reproduced yet",
    )
    if config.encoder.deletion != "token":
        return (*cautions, assumed)
    other = Notice(
        code="other-deletion",
        message="background is left out token by token, where the released model had all tokens "
        "of a mask unit: its embeddings differ from those it was trained to give",
    )
    return (*cautions, assumed, other)


def _find(name_or_folder: str | Path, search: Sequence[Path]) -> Path:
    name = os.fspath(name_or_folder)
    is_folder = isinstance(name_or_folder, Path) or "/" in name or os.sep in name
    places = [Path(name)] if is_folder else [folder / name for folder in search]
    # Not Path.is_dir, which fails where a name is too long to be one.
    found = next((place for place in places if os.path.isdir(place)), None)  # noqa: PTH112
    if found is not None:
        return found.resolve()
    known = sorted({file.parent.name for folder in search for file in folder.glob(f"*/{CONFIG}")})
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    raise CallRefused(
        "package-missing",
        file=name,
        expected="a model package",
        found="no such folder" if is_folder else f"only {', '.join(known)}",
        advice=(f"did you mean {near[0]}? " if near else "")
        + "A folder is given with a slash, as in ./NAME",
    )


def _check_replaceable(folder: Path) -> None:
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    is_ours = (folder / CHECKSUMS).is_file() or (folder / CHECKPOINTS).is_dir()
    if not is_new and not is_ours:
        raise CallRefused(
            "usage",
            file=folder,
            expected="a new folder, or a package to replace",
            found="a folder with other things in it",
            advice="name another one",
        )


def _end_training(folder: Path) -> None:
    """Bring the package out of the checkpoints and remove them, safe to be killed anywhere.

    Checksums go first and come last, so that a mixture of an older package and this one is never
    taken for whole; and checkpoints are renamed before they are removed one by one.
    """
    made, spent = folder / CHECKPOINTS / "package", folder / f"{TEMPORARY}{CHECKPOINTS}"
    names = [*sorted({file.name for file in made.iterdir()} - {CHECKSUMS}), CHECKSUMS]
    (folder / CHECKSUMS).unlink(missing_ok=True)
    for part in (*folder.glob("*.safetensors"), folder / HEADS):
        part.unlink(missing_ok=True)
    for name in names:
        (made / name).replace(folder / name)
    shutil.rmtree(spent, ignore_errors=True)
    (folder / CHECKPOINTS).replace(spent)
    shutil.rmtree(spent)


def _read_records(package: Package) -> dict[str, str]:
    """Return the text files of a package beside its parts, by name."""
    parts = {MODEL, EXTRACTOR, READOUT, HEADS, HEAD_WEIGHTS, CONFIG, CARD}
    names = read_checksums(package.folder).keys() - parts
    return {name: (package.folder / name).read_text(encoding="utf-8") for name in names}


def _stored_dtype(package: Package) -> torch.dtype:
    """Return the precision of the stored weights, so that nothing is gained or lost."""
    from safetensors import safe_open

    with safe_open(package.folder / MODEL, framework="pt") as stored:
        kinds = {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118
    return torch.float16 if kinds == {"F16"} else torch.float32


def _read_seen(package: Package) -> set[str]:
    file = package.folder / SEEN
    return set(read_part(file, dict[str, list[str]]).get("sha256", ())) if file.is_file() else set()


def _check_files(folder: Path) -> dict[str, str]:
    """Return the stated checksums after holding every file against its own."""
    digests = read_checksums(folder)
    present = {file.name for file in (*folder.glob("*.safetensors"), *folder.glob(HEADS))}
    unlisted = {MODEL, CONFIG, CARD, *present} - digests.keys()
    if unlisted:
        found = f"none of {', '.join(sorted(unlisted))}"
        raise refuse_part(folder / CHECKSUMS, "checksums of all parts and weights", found)
    for name, stated in digests.items():
        try:
            found = sha256_of(folder / name)
        except OSError as error:
            found = error.strerror or str(error)
        if found != stated:
            raise refuse_part(folder / name, f"SHA-256 {stated}", found)
    return digests


def _read_config(folder: Path) -> Config:
    """Read a configuration whose contract and sizes are understood and agree."""
    file = folder / CONFIG
    config = read_part(file, Config)
    contract, encoder = config.contract, config.encoder
    # What a package may choose; all else is fixed for this release.
    known = Contract(
        frame_time=contract.frame_time, frames=contract.frames, channels=contract.channels
    )
    if contract != known or not contract.frame_time > 0:
        raise refuse_part(file, f"a contract like {Contract()}", str(contract), NEWER)
    wanted = (len(contract.channels), contract.frames, *contract.shape)
    if wanted != (encoder.channels, *encoder.shape):
        found = format_shape((encoder.channels, *encoder.shape))
        raise refuse_part(file, f"an encoder for an input of {format_shape(wanted)}", found)
    return config


def _check_tensors(file: Path, network: nn.Module) -> None:
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_shapes(file, wanted, f"the {len(wanted)} tensors that the sizes in {CONFIG} call for")


def _load_weights(network: Network, file: Path, device: torch.device | str) -> Network:
    """Put weights into a network that was built on the meta device."""
    from safetensors.torch import load_file

    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval().to(device)


def _save_weights(network: nn.Module, file: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import save

    weights: dict[str, Tensor] = {
        name: tensor.detach().to("cpu", dtype).contiguous()
        for name, tensor in network.state_dict().items()
    }
    # Not save_file, whose files only their owner can read.
    file.write_bytes(save(weights))


def _untrained_card(name: str, config: Config) -> str:
    contract, encoder = config.contract, config.encoder
    return f"""# {name}

**Untrained.** The weights are random numbers, drawn with seed {config.seed}: maps so that they keep
the variance of their input, filters of patches smooth in space, positions with deviation 0.02,
biases 0, norms the identity. No data of any person went into them.

|  |  |
| --- | --- |
| preset | {config.preset} |
| time | {contract.frames} frames of {contract.frame_time:g} s |
| space | {contract.space}, {format_shape(contract.shape)} voxels of {contract.voxel_size:g} mm |
| channels | {", ".join(contract.channels)} |
| embedding | {encoder.embedding_width} values |
| licence | Apache-2.0, as SlimBrain's code |

## What it is for

Trying SlimBrain, testing a pipeline, the starting point of a training, and the baseline that any
trained package has to beat.

## What it is not for

Findings about people. Its embeddings depend on the input, so that a classifier may find something
in them; that says nothing of the network. Never for decisions about anyone's health.
"""
