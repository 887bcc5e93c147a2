"""The face for Python: the participant level as a transformer of scikit-learn."""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_memory

from slimbrain_app import __version__
from slimbrain_app.bids.discover import check_dataset, discover_participant
from slimbrain_app.bids.entities import VARIANT, Name, parse_name
from slimbrain_app.bids.headers import read_header, reading, require_content, require_series
from slimbrain_app.bids.metadata import (
    Origin,
    first_timing,
    own_sidecar,
    resolve_repetition_time,
)
from slimbrain_app.bids.spaces import MODEL, NATIVE, space_of
from slimbrain_app.device import choose_device
from slimbrain_app.embedding import embed_run
from slimbrain_app.errors import CallRefused, RunRefused, SlimBrainError
from slimbrain_app.files import sha256_of
from slimbrain_app.model.packages import Package, load_extractor, load_package, note_seen
from slimbrain_app.prepare import prepare_run
from slimbrain_app.prepare.reading import open_series
from slimbrain_app.ranking import rank_run
from slimbrain_app.records import Notice, Run
from slimbrain_app.settings import ParticipantSettings, Prepare, Select, read_settings

Row = NDArray[np.float32]
Told = tuple[str, Notice]


class SlimBrainWarning(UserWarning):
    """What the participant level writes beside a run as a warning, with its code."""


class SlimBrainEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn BOLD images into embeddings, one row for each.

    Items of ``X`` are, in any mixture:

    - the path of a BOLD series in a folder of derivatives, ``sub-*/[ses-*/]func/``: the run is
      found, with its mask, confounds and sidecars, and embedded as the participant level does,
      to the bit;
    - a `slimbrain_app.records.Run`, as `slimbrain_app.bids.discover.discover` returns them;
    - the path of another 4D NIfTI image, or a nibabel image, which must lie in
      MNI152NLin2009cAsym. Its repetition time is ``tr``, or what a JSON beside the file says, or
      its header; its brain is ``mask``, or what `nilearn.masking.compute_epi_mask` makes of the
      mean over time. Its motion is unknown, so that the motion guard is off. An image, unlike a
      file, is held in memory and written to a temporary file, whole.

    Nothing is learnt from the images: `fit` checks the parameters and loads the package. People,
    not runs, are to be kept apart in cross-validation, by their labels as ``groups``.

    Parameters
    ----------
    model : str or Path
        Name or folder of a model package.
    windows : int or "all"
        How many windows of a run are encoded.
    ranking : {"mutual", "representative", "novelty", "random", "uniform", "first"}
    views : int
        Encoder inputs for each window.
    fd_threshold : float
        Framewise displacement (mm) above which a frame counts as moving; 0 for no guard.
    tr : float, optional
        Seconds between volumes. One that a sidecar contradicts is refused; a `Run` keeps its own.
    mask : str, Path or nibabel image, optional
        The brain for all items, instead of each one's own.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}
    seed : int
        Of the ranking ``random``.
    memory : str, Path or object with the interface of joblib.Memory, optional
        Where embeddings are kept, so that folds and candidates of a search that share an image
        embed it once. Files are known by path, size and time of change, images by content.

    Attributes
    ----------
    package_ : slimbrain_app.model.packages.Package
    n_features_out_ : int
        Numbers per embedding.

    Notes
    -----
    scikit-learn's `check_estimator` hands tables of numbers to `transform`, which refuses them, so
    that only those of its checks hold that need no such table. Refusals are SlimBrain's own errors
    and no ValueError.
    """

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        windows: int | str = 8,
        ranking: str = "mutual",
        views: int = 1,
        fd_threshold: float = 0.5,
        tr: float | None = None,
        mask: Any = None,
        device: str = "auto",
        seed: int = 0,
        memory: Any = None,
    ) -> None:
        self.model = model
        self.windows = windows
        self.ranking = ranking
        self.views = views
        self.fd_threshold = fd_threshold
        self.tr = tr
        self.mask = mask
        self.device = device
        self.seed = seed
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> SlimBrainEmbedder:  # noqa: ARG002, N803
        """Check the parameters and load the package; images are not looked at.

        Raises
        ------
        CallRefused
            ``usage`` for a parameter out of its range, ``device-missing``, ``package-missing``,
            ``package-bad``.
        """
        self._read_settings()
        choose_device(self.device)
        self.package_ = load_package(self.model)
        self.n_features_out_ = self.package_.config.encoder.embedding_width
        if not self.package_.trained:
            message = f"the package {self.package_.name} is untrained: its embeddings mean nothing"
            warnings.warn(message, SlimBrainWarning, stacklevel=2)
        _warn((self.package_.name, notice) for notice in self.package_.identity.notices)
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:  # noqa: N803
        """Embed images.

        Parameters
        ----------
        X : sequence of str, Path, nibabel image or Run

        Returns
        -------
        ndarray, float32, shape (images, n_features_out_)

        Raises
        ------
        CallRefused
            ``usage`` for what is no image.
        RunRefused
            As of the participant level; the first one ends the call.
        """
        check_is_fitted(self)
        settings, device = self._read_settings(), choose_device(self.device)
        ignored = ["item", "package", "settings", "device"]
        memory = os.fspath(self.memory) if isinstance(self.memory, os.PathLike) else self.memory
        embed = check_memory(memory).cache(_embed_item, ignore=ignored)
        rows: list[Row] = []
        told: list[Told] = []
        for number, given in enumerate(_list_items(X)):
            label = _label_of(given, number)
            with _named(label), TemporaryDirectory(prefix="slimbrain_") as work:
                item = _find_item(given, label, settings.prepare, self.mask, Path(work))
                key = _describe_item(item, self.package_, settings, device)
                row, notices = embed(key, item, self.package_, settings, device)
            rows.append(row)
            told += [(label, notice) for notice in (*item.run.notices, *notices)]
        _warn(told)
        return np.stack(rows)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the columns' names, ``e0000`` onwards as in the participant level's tables."""
        check_is_fitted(self)
        return np.array([f"e{i:04d}" for i in range(self.n_features_out_)], dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _read_settings(self) -> ParticipantSettings:
        # A search draws its candidates as numpy's numbers.
        asked = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params(deep=False).items()
        }
        overrides = {
            "model": str(self.model),
            "seed": asked["seed"],
            "prepare": {"tr": asked["tr"]},
            "rank": {
                "mode": asked["ranking"],
                "windows": asked["windows"],
                "fd_threshold": asked["fd_threshold"],
            },
            "encode": {"views": asked["views"]},
            "compute": {"device": asked["device"]},
        }
        try:
            return read_settings(ParticipantSettings, None, overrides)
        except CallRefused as error:
            raise CallRefused(
                error.reason,
                file=type(self).__name__,
                expected="parameters with values in their range",
                found=error.found,
                advice="correct them",
            ) from error


@dataclass(frozen=True, slots=True)
class _Item:
    """An image to embed: its run, and the folder where its mask is to be made, if it has none."""

    run: Run
    work: Path
    lacks_mask: bool = False


def _embed_item(
    key: str,  # noqa: ARG001 -- what joblib knows the result by
    item: _Item,
    package: Package,
    settings: ParticipantSettings,
    device: str,
) -> tuple[Row, tuple[Notice, ...]]:
    """Take a run through the verbs of the participant level."""
    run, contract = item.run, package.contract
    if item.lacks_mask:
        _make_mask(run)
    prepared = prepare_run(run, item.work / "prepared", settings.prepare, contract.span_seconds)
    extractor = load_extractor(package)
    ranked = rank_run(prepared, contract, extractor, settings.rank, settings.seed, run.name)
    embedding = embed_run(prepared, ranked, package, settings.encode, device)
    seen = note_seen(package, prepared)
    return embedding.mean, (*prepared.notices, *ranked.notices, *seen)


def _describe_item(
    item: _Item, package: Package, settings: ParticipantSettings, device: str
) -> str:
    """Name everything that an embedding depends on."""
    run = item.run
    given = [path for path in run.sources if not (item.lacks_mask and path == run.mask)]
    telling = {
        "version": __version__,
        "model": package.sha256,
        "settings": settings.fingerprint(),
        "device": device,
        "run": run.name,
        "tr": run.repetition_time.seconds,
        "sources": [_describe_file(path, run.relative(path), item.work) for path in given],
    }
    return json.dumps(telling)


def _describe_file(path: Path, shown: str, work: Path) -> list[str | int]:
    """Tell a file from what it may be later; hashing would cost as much as reading it."""
    with reading(path, shown):
        state = path.stat()
    if path.is_relative_to(work):
        return [sha256_of(path)]
    return [str(path), state.st_size, state.st_mtime_ns]


def _list_items(given: Any) -> list[Any]:
    alone = isinstance(given, str | os.PathLike | SpatialImage | Run)
    if alone or getattr(given, "ndim", 1) != 1:
        raise _no_sequence(f"a {type(given).__name__}")
    items = list(given)
    if not items:
        raise _no_sequence("an empty one")
    return items


def _no_sequence(found: str) -> CallRefused:
    return CallRefused(
        "usage",
        file="X",
        expected="a sequence of images",
        found=found,
        advice="give a list, or one column of a table",
    )


def _label_of(given: Any, number: int) -> str:
    """Return what messages call an item: its file, or its place."""
    if isinstance(given, Run):
        return str(given.bold)
    if isinstance(given, str | os.PathLike):
        return os.fspath(given)
    return f"X[{number}]"


@contextmanager
def _named(label: str) -> Iterator[None]:
    """Have refusals name the item they are about: their own paths may be short, or of its parts."""
    try:
        yield
    except SlimBrainError as error:
        file = error.file or label
        raise type(error)(
            error.reason,
            file=label if label.endswith(file) else f"{label}, {file}",
            expected=error.expected,
            found=error.found,
            advice=error.advice,
        ) from error


def _find_item(given: Any, label: str, settings: Prepare, mask: Any, work: Path) -> _Item:
    item = _find_run(given, label, settings, work)
    if mask is None:
        return item
    path = _save_image(mask, work / "mask.nii") if isinstance(mask, SpatialImage) else Path(mask)
    return _Item(replace(item.run, mask=path.absolute(), mask_transforms=()), work)


def _find_run(given: Any, label: str, settings: Prepare, work: Path) -> _Item:
    if isinstance(given, Run):
        return _Item(given, work)
    if isinstance(given, SpatialImage):
        path = _save_image(given, work / f"{label}.nii")
        # Named by content: what is drawn for it must not hang on its place among others.
        return _describe_lone(path, sha256_of(path), settings, work)
    if not isinstance(given, str | os.PathLike):
        raise CallRefused(
            "usage",
            file=label,
            expected="the path of a 4D NIfTI image, a nibabel image or a Run",
            found=type(given).__name__,
            advice="give one of them for each sample",
        )
    path = Path(given).absolute()
    require_content(path, label)
    name = parse_name(path.name)
    dataset = _find_dataset(path, name) if name else None
    if name and dataset:
        return _Item(_discover_run(path, name, dataset, settings), work)
    if name and name.get("sub") and space_of(name) != MODEL.space:
        raise _other_space(label, space_of(name))
    return _describe_lone(path, path.name.split(".")[0], settings, work)


def _find_dataset(path: Path, name: Name) -> Path | None:
    """Return the folder of derivatives that a file lies in, if it lies where its name says."""
    above = [f"{key}-{value}" for key, value in name.entities if key in ("sub", "ses")]
    folders = (*above, "func")
    if name.get("sub") is None or path.parts[-len(folders) - 1 : -1] != folders:
        return None
    return path.parents[len(folders)]


def _discover_run(path: Path, name: Name, dataset: Path, settings: Prepare) -> Run:
    """Find the run of a file as the participant level does, asked for the file's own space."""
    notices = check_dataset(dataset)
    label, identity = name.get("sub") or "", "_".join("-".join(p) for p in name.without(VARIANT))
    grid = "".join(f":{key}-{name.get(key)}" for key in ("res", "cohort") if name.get(key))
    wish = replace(settings, space=f"{name.get('space') or NATIVE}{grid}")
    sessions, tasks, runs = (tuple(filter(None, [name.get(k)])) for k in ("ses", "task", "run"))
    select = Select(sessions=sessions, tasks=tasks, runs=runs)
    found = discover_participant(dataset, label, select, wish)
    for run in found.runs:
        if run.bold == path:
            return replace(run, notices=(*notices, *run.notices))
    for refusal in found.refused:
        if refusal.run in (identity, f"sub-{label}"):
            raise RunRefused(
                refusal.code,
                file=refusal.file,
                expected=refusal.expected,
                found=refusal.found,
                advice=refusal.advice,
            )
    raise RunRefused(
        "ambiguous",
        file=path.name,
        expected="the series that the participant level takes of this run and space",
        found="another one than " + (", ".join(run.bold.name for run in found.runs) or "any"),
        advice="give that one",
    )


def _describe_lone(path: Path, identity: str, settings: Prepare, work: Path) -> _Item:
    """Make a run of an image that comes without the files that fMRIPrep lays beside it."""
    header = read_header(path)
    require_series(header, path.name)
    own = own_sidecar(path)
    listed: list[tuple[Origin, Path]] = [("sidecar", own)] if own.is_file() else []
    stated, sidecars = first_timing(listed, path.parent)
    if settings.tr is None and stated is None:
        _require_timing(header.time_step, header.time_unit, path.name)
    tr, notices = resolve_repetition_time(settings.tr, stated, header, path.name)
    run = Run(
        entities=(("sub", identity),),
        dataset=path.parent,
        bold=path,
        mask=work / "made_mask.nii",
        confounds=None,
        sidecars=sidecars,
        transforms=(),
        space=MODEL.space,
        rung=0,
        interpolations=2,
        repetition_time=tr,
        notices=notices,
    )
    return _Item(run, work, lacks_mask=True)


def _require_timing(step: float, unit: str, shown: str) -> None:
    if (step, unit) == (1.0, "unknown"):
        raise RunRefused(
            "no-tr",
            file=shown,
            expected="a repetition time in the header",
            found="pixdim[4] = 1 with unit unknown, as nibabel leaves it in a new header",
            advice="state tr, or set zooms and units of the header",
        )


def _other_space(label: str, space: str) -> RunRefused:
    return RunRefused(
        "no-space",
        file=label,
        expected=f"an image in {MODEL.space}, if it doesn't lie in sub-*/func of derivatives",
        found=f"one in the space {space}, by its name",
        advice="give the file where fMRIPrep wrote it",
    )


def _make_mask(run: Run) -> None:
    """Write the brain mask of a lone image, made of its mean over time."""
    from nilearn.masking import compute_epi_mask

    with open_series(run.bold, run.relative(run.bold)) as series:
        header = series.header
        total = np.zeros(header.grid.shape[::-1])
        for batch in series.batches(0, [header.make_buffer()]):
            total += batch.sum(axis=0, dtype=np.float64)
    mean = (total / header.volumes * header.slope + header.inter).T
    image = nibabel.Nifti1Image(mean.astype(np.float32), header.grid.affine)
    compute_epi_mask(image).to_filename(run.mask)


def _save_image(image: SpatialImage, path: Path) -> Path:
    """Write an image without loss: in the type of its values, which may not be its header's."""
    values = np.asanyarray(image.dataobj)
    nibabel.Nifti1Image(values, image.affine, image.header, dtype=values.dtype).to_filename(path)
    return path


def _warn(told: Iterable[Told]) -> None:
    """Warn once of each code, with the first case in full."""
    cases: dict[str, list[Told]] = defaultdict(list)
    for label, notice in told:
        cases[notice.code].append((label, notice))
    for code, ((label, notice), *others) in cases.items():
        more = f" (and {len(others)} more)" if others else ""
        message = f"[{code}] {label}: {notice.message}{more}"
        warnings.warn(message, SlimBrainWarning, stacklevel=3)
